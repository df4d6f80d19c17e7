//! One side's line to the other: the control stream of the moment, and the failpoints on the way to
//! it.

use tokio::sync::mpsc;

use super::control::{Control, Ear, Heard};
use crate::failpoint::{Failpoints, Passage};
use crate::framing;
use crate::protocol::CodecError;
use crate::protocol::codec::Message;

/// The names of one side's failpoints.
#[derive(Debug)]
pub(super) struct Moments {
    act: &'static str,
    send: &'static str,
    receive: &'static str,
}

/// Those of the source.
pub(super) const SOURCE: Moments =
    Moments { act: "source.act", send: "source.send", receive: "source.recv" };
/// Those of the destination.
pub(super) const DESTINATION: Moments =
    Moments { act: "destination.act", send: "destination.send", receive: "destination.recv" };

/// At most one control stream at a time, and the number of those there were: words of an earlier
/// one are not taken for the current one's.
#[derive(Debug)]
pub(super) struct Line {
    moments: Moments,
    failpoints: Failpoints,
    control: Option<Control>,
    generation: u64,
}

impl Line {
    pub(super) fn new(moments: Moments, failpoints: Failpoints) -> Self {
        Self { moments, failpoints, control: None, generation: 0 }
    }

    /// The control stream, if there is one.
    pub(super) fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// For other points than those of messages and actions.
    pub(super) fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    /// The number of the control stream there is, or was last.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// An ear for the next control stream, which is to be [opened](Self::open) with it.
    pub(super) fn next_ear<M, T>(
        &mut self,
        inputs: mpsc::Sender<T>,
        wrap: fn(u64, Heard<M>) -> T,
    ) -> Ear<M, T> {
        self.generation += 1;
        Ear { inputs, generation: self.generation, wrap }
    }

    /// Takes over a control stream.
    pub(super) fn open(&mut self, control: Control) {
        self.control = Some(control);
    }

    /// Gives the control stream up: what was given to it is still sent, what comes from it is not
    /// heard any more.
    pub(super) fn close(&mut self) {
        self.failpoints.thaw();
        self.generation += 1;
        self.control = None;
    }

    /// Closes the connections at once, and hears of it as of any other loss.
    pub(super) fn cut(&self, reason: &str) {
        if let Some(control) = &self.control {
            control.cut(reason);
        }
    }

    /// Sends `message`, which is called `name`, when there is a control stream.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub(super) fn send<M: Message>(&self, name: &str, message: &M) -> Result<(), CodecError> {
        let passage = self.failpoints.reach(self.moments.send, name);
        let Some(control) = &self.control else { return Ok(()) };
        let mut frame = framing::frame(message)?;
        match passage {
            Passage::Hold => return Ok(()),
            Passage::Cut => {
                control.cut("failpoint");
                return Ok(());
            }
            Passage::Go => {}
            Passage::Flip => {
                let middle = frame.len() / 2;
                frame[middle] ^= 0x10;
            }
        }
        control.send_bytes(frame);
        Ok(())
    }

    /// Whether the action of this name is to be performed.
    pub(super) fn may_act(&self, action: &str) -> bool {
        self.may_pass(self.moments.act, action)
    }

    /// Whether the message of this name is to be heard.
    pub(super) fn may_hear(&self, message: &str) -> bool {
        self.may_pass(self.moments.receive, message)
    }

    fn may_pass(&self, moment: &str, name: &str) -> bool {
        match self.failpoints.reach(moment, name) {
            Passage::Hold => return false,
            Passage::Cut => self.cut("failpoint"),
            Passage::Go | Passage::Flip => {}
        }
        true
    }
}
