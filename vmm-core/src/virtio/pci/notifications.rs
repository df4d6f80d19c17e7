//! Notifications of a function's queues: ioeventfds at places in its BAR, with which they move.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::layout::{NOTIFY, NOTIFY_BYTES};

/// The ioeventfds of a function; see the module.
#[derive(Debug)]
pub(in crate::virtio) struct Notifications {
    vm: Arc<VmFd>,
    kicks: Vec<EventFd>,
    /// Start of the BAR for which they are registered, and which of them are.
    at: Option<(u64, Vec<bool>)>,
}

impl Notifications {
    /// Returns ioeventfds that signal `kicks`, one for each queue, and are registered nowhere yet.
    ///
    /// # Errors
    /// The error of a system call.
    pub(super) fn new(vm: Arc<VmFd>, kicks: &[EventFd]) -> io::Result<Self> {
        let kicks: io::Result<_> = kicks.iter().map(EventFd::try_clone).collect();
        Ok(Self { vm, kicks: kicks?, at: None })
    }

    /// Registers them for a BAR that starts at `bar`, or nowhere. If KVM does not take one, as when
    /// a guest lays two BARs over each other, the notification comes as an exit.
    pub(super) fn follow(&mut self, bar: Option<u64>) {
        if self.at.as_ref().map(|(at, _)| *at) == bar {
            return;
        }
        if let Some((at, registered)) = self.at.take() {
            let registered = registered.into_iter().zip(places(at)).zip(&self.kicks);
            for ((_, place), kick) in registered.filter(|((is_registered, _), _)| *is_registered) {
                if let Err(error) = self.vm.unregister_ioevent(kick, &place, NoDatamatch) {
                    tracing::error!(%error, "cannot take a notification from its place");
                }
            }
        }
        self.at = bar.map(|at| {
            let kicks = places(at).zip(&self.kicks);
            let register = |(place, kick): (_, &_)| {
                self.vm.register_ioevent(kick, &place, NoDatamatch).is_ok()
            };
            (at, kicks.map(register).collect())
        });
    }
}

/// Gives the places back: another device may get them.
impl Drop for Notifications {
    fn drop(&mut self) {
        self.follow(None);
    }
}

/// Returns where the queues of a device are notified whose BAR starts at `bar`. A match of any
/// width and value is the one that KVM finds without decoding the instruction.
fn places(bar: u64) -> impl Iterator<Item = IoEventAddress> {
    let places = (bar + NOTIFY.start as u64..).step_by(NOTIFY_BYTES);
    places.map(IoEventAddress::Mmio)
}
