//! One side's connection to the other: the current control stream, and the failpoints around it.

use tokio::sync::mpsc;

use super::control::{Control, Heard, Inbox};
use crate::failpoint::{Failpoints, Passage};
use crate::framing;
use crate::protocol::CodecError;
use crate::protocol::codec::Message;

/// The names of one side's failpoints.
#[derive(Debug)]
pub(super) struct FailpointNames {
    act: &'static str,
    send: &'static str,
    receive: &'static str,
}

/// Failpoints of the source.
pub(super) const SOURCE: FailpointNames =
    FailpointNames { act: "source.act", send: "source.send", receive: "source.recv" };
/// Failpoints of the destination.
pub(super) const DESTINATION: FailpointNames = FailpointNames {
    act: "destination.act",
    send: "destination.send",
    receive: "destination.recv",
};

/// At most one control stream at a time, with its number: late messages of an earlier one are then
/// not taken for messages of the current one.
#[derive(Debug)]
pub(super) struct Line {
    failpoint_names: FailpointNames,
    failpoints: Failpoints,
    control: Option<Control>,
    generation: u64,
}

impl Line {
    pub(super) fn new(failpoint_names: FailpointNames, failpoints: Failpoints) -> Self {
        Self { failpoint_names, failpoints, control: None, generation: 0 }
    }

    /// Returns the control stream, if there is one.
    pub(super) fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// Returns the control stream, if there is one, to add links to it.
    pub(super) fn control_mut(&mut self) -> Option<&mut Control> {
        self.control.as_mut()
    }

    /// Returns the failpoints, for points other than messages and actions.
    pub(super) fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    /// Returns the number of the current or last control stream.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Creates a receiver for the next control stream, which must be [opened](Self::open) with it.
    pub(super) fn next_inbox<M, T>(
        &mut self,
        inputs: mpsc::Sender<T>,
        wrap: fn(u64, Heard<M>) -> T,
    ) -> Inbox<M, T> {
        self.generation += 1;
        self.inbox(inputs, wrap)
    }

    /// Creates a receiver for a further link of the current control stream.
    pub(super) fn inbox<M, T>(
        &self,
        inputs: mpsc::Sender<T>,
        wrap: fn(u64, Heard<M>) -> T,
    ) -> Inbox<M, T> {
        Inbox { inputs, generation: self.generation, wrap }
    }

    /// Makes `control` the current control stream.
    pub(super) fn open(&mut self, control: Control) {
        self.control = Some(control);
    }

    /// Releases the control stream: its queued messages are still sent, but what arrives on it is
    /// ignored.
    pub(super) fn close(&mut self) {
        self.failpoints.thaw();
        self.generation += 1;
        self.control = None;
    }

    /// Closes the connections at once; the loss is reported like any other.
    pub(super) fn cut(&self, reason: &str) {
        if let Some(control) = &self.control {
            control.cut(reason);
        }
    }

    /// Sends `message`, whose name is `name`, if there is a control stream.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub(super) fn send<M: Message>(&self, name: &str, message: &M) -> Result<(), CodecError> {
        let passage = self.failpoints.reach(self.failpoint_names.send, name);
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

    /// Returns whether the action of this name is to be performed.
    pub(super) fn may_act(&self, action: &str) -> bool {
        self.may_pass(self.failpoint_names.act, action)
    }

    /// Returns whether the message of this name is to be handled.
    pub(super) fn may_hear(&self, message: &str) -> bool {
        self.may_pass(self.failpoint_names.receive, message)
    }

    fn may_pass(&self, point: &str, name: &str) -> bool {
        match self.failpoints.reach(point, name) {
            Passage::Hold => return false,
            Passage::Cut => self.cut("failpoint"),
            Passage::Go | Passage::Flip => {}
        }
        true
    }
}
