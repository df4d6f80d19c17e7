//! Events of a guest for its owner: its end, a reset, and the doorbell.
//!
//! Events wait in an [`EventQueue`]. A guest can ring its doorbell as often as it likes, so the
//! queue keeps only the last [`DOORBELLS_MAX`] rings. It never drops the one event that says that
//! the guest has stopped, nor a reset or an ejection, of each of which at most one waits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Rings of the doorbell that wait to be taken; at this limit the queue drops the oldest.
pub const DOORBELLS_MAX: usize = 256;

/// Something that a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest has ended; none of its vCPUs runs again.
    Stopped(StopReason),
    /// The vCPUs park and stay so until the guest is reset: call [`crate::Vm::start_over`].
    Reset(StopReason),
    /// The guest has let go of devices: call [`crate::Vm::take_ejected`].
    Ejected,
    /// The guest wrote to [`crate::devices::DOORBELL_PORT`].
    Doorbell {
        /// The vCPU that wrote.
        vcpu: u8,
        /// The value written, zero-extended.
        value: u32,
    },
}

/// Why a guest has ended or resets.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum StopReason {
    /// The owner called [`crate::Vm::stop`].
    Asked,
    /// The guest pulled the reset line (0xfe to the i8042's command port, 0x64), or wrote to the
    /// ACPI reset register.
    Reset,
    /// The owner called [`crate::Vm::reset`].
    ResetAsked,
    /// The guest powered itself off, by ACPI's soft-off (S5) or [`crate::devices::POWER_OFF_PORT`].
    PowerOff,
    /// The guest was to reset and could not.
    NoRestart {
        /// Why it was to reset.
        reason: Box<StopReason>,
        /// Why it could not.
        error: String,
    },
    /// A fault that the processor could not deliver (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// The vCPU that faulted.
        vcpu: u8,
        /// Address of its current instruction.
        rip: u64,
    },
    /// KVM gave up on an instruction (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// The vCPU concerned.
        vcpu: u8,
        /// `KVM_INTERNAL_ERROR_*` of `linux/kvm.h`; 1 is an instruction that could not be emulated.
        suberror: u32,
        /// Address of its current instruction.
        rip: u64,
        /// The instruction's bytes, if KVM reports them; at most 15.
        instruction: Vec<u8>,
    },
    /// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// The vCPU concerned.
        vcpu: u8,
        /// The hardware's reason.
        reason: u64,
    },
    /// An exit that this VMM does not expect, or an error from `KVM_RUN`.
    Unexpected {
        /// The vCPU concerned.
        vcpu: u8,
        /// Description of the exit or the error.
        what: String,
    },
}

impl StopReason {
    /// Whether the guest ended as it or its owner asked; false for a crash.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Asked | Self::Reset | Self::PowerOff)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => write!(f, "stopped on request"),
            Self::Reset => write!(f, "the guest asked for a reset"),
            Self::ResetAsked => write!(f, "reset on request"),
            Self::NoRestart { reason, error } => {
                write!(f, "{reason}, and the guest cannot be booted again: {error}")
            }
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::TripleFault { vcpu, rip } => write!(f, "triple fault on vcpu {vcpu} at {rip:#x}"),
            Self::InternalError { vcpu, suberror, rip, instruction } => write!(
                f,
                "kvm could not go on with vcpu {vcpu} at {rip:#x} (suberror {suberror}, instruction {instruction:02x?})"
            ),
            Self::FailEntry { vcpu, reason } => {
                write!(f, "the processor refused to run vcpu {vcpu}: reason {reason:#x}")
            }
            Self::Unexpected { vcpu, what } => write!(f, "unexpected exit of vcpu {vcpu}: {what}"),
        }
    }
}

/// A bounded queue of [`VmEvent`]s with any number of consumers.
#[derive(Debug, Default)]
pub struct EventQueue {
    inner: Mutex<Inner>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<VmEvent>,
    stopped: bool,
}

impl EventQueue {
    /// Takes the oldest event, waiting up to `patience` for one. Returns `None` when that time has
    /// passed, or at once when the guest has stopped and all its events have been taken.
    pub fn take(&self, patience: Duration) -> Option<VmEvent> {
        let deadline = Instant::now() + patience;
        let mut inner = self.lock();
        loop {
            if let Some(event) = inner.waiting.pop_front() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.stopped || left.is_zero() {
                return None;
            }
            inner =
                self.arrived.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Adds an event. Of several [`VmEvent::Stopped`] only the first counts.
    pub(crate) fn push(&self, event: VmEvent) {
        let mut inner = self.lock();
        if inner.stopped {
            return;
        }
        match event {
            VmEvent::Stopped(_) => inner.stopped = true,
            VmEvent::Reset(_) if inner.waiting.iter().any(is_reset) => return,
            VmEvent::Ejected if inner.waiting.contains(&VmEvent::Ejected) => return,
            VmEvent::Doorbell { .. } if inner.waiting.len() >= DOORBELLS_MAX => {
                let oldest = inner.waiting.iter().position(is_doorbell);
                oldest.and_then(|oldest| inner.waiting.remove(oldest));
            }
            VmEvent::Doorbell { .. } | VmEvent::Reset(_) | VmEvent::Ejected => {}
        }
        inner.waiting.push_back(event);
        self.arrived.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_reset(event: &VmEvent) -> bool {
    matches!(event, VmEvent::Reset(_))
}

fn is_doorbell(event: &VmEvent) -> bool {
    matches!(event, VmEvent::Doorbell { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(value: u32) -> VmEvent {
        VmEvent::Doorbell { vcpu: 0, value }
    }

    #[test]
    fn a_flood_of_doorbells_keeps_the_newest_and_the_stop() {
        let queue = EventQueue::default();
        for value in 0..10 * DOORBELLS_MAX as u32 {
            queue.push(ring(value));
        }
        queue.push(VmEvent::Stopped(StopReason::Reset));
        queue.push(ring(7));

        let mut taken = Vec::new();
        while let Some(event) = queue.take(Duration::ZERO) {
            taken.push(event);
        }
        assert_eq!(taken.len(), DOORBELLS_MAX + 1);
        assert_eq!(taken[0], ring(9 * DOORBELLS_MAX as u32));
        assert_eq!(taken.last(), Some(&VmEvent::Stopped(StopReason::Reset)));
    }

    #[test]
    fn a_flood_of_resets_and_ejections_is_one_each_and_no_doorbell_pushes_it_out() {
        let queue = EventQueue::default();
        for value in 0..2 * DOORBELLS_MAX as u32 {
            queue.push(VmEvent::Reset(StopReason::Reset));
            queue.push(VmEvent::Ejected);
            queue.push(ring(value));
        }
        let mut taken = Vec::new();
        while let Some(event) = queue.take(Duration::ZERO) {
            taken.push(event);
        }
        assert_eq!(taken.iter().filter(|event| is_reset(event)).count(), 1);
        assert_eq!(taken.iter().filter(|event| **event == VmEvent::Ejected).count(), 1);
        assert_eq!(taken.len(), DOORBELLS_MAX);
    }

    #[test]
    fn taking_from_a_stopped_guest_does_not_wait() {
        let queue = EventQueue::default();
        queue.push(VmEvent::Stopped(StopReason::PowerOff));
        queue.push(VmEvent::Stopped(StopReason::Reset));
        let forever = Duration::from_secs(3600);
        assert_eq!(queue.take(forever), Some(VmEvent::Stopped(StopReason::PowerOff)));
        assert_eq!(queue.take(forever), None);
    }
}
