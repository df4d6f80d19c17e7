//! Events that the workload guest announces through its I/O port.

use super::abi::{BELL_FAULT, BELL_FILLED, BELL_PANIC, BELL_STOPPED, BELL_VERIFIED, VCPUS_MAX};

/// An event encoded in a 32-bit write to [`super::DOORBELL_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// The vCPU has filled its part of memory and starts to work.
    Filled {
        /// Index of the vCPU.
        vcpu: u8,
    },
    /// The vCPU has finished a verification; its report has the result.
    Verified {
        /// Index of the vCPU.
        vcpu: u8,
    },
    /// The vCPU has obeyed [`super::Control::stop`].
    Stopped {
        /// Index of the vCPU.
        vcpu: u8,
    },
    /// The vCPU has found its first bad page.
    Fault {
        /// Index of the vCPU.
        vcpu: u8,
    },
    /// The guest program panicked or was started with unknown parameters.
    Panic {
        /// Index of the vCPU.
        vcpu: u8,
    },
}

impl Doorbell {
    /// Decodes `value`; `None` for a value that no workload writes.
    #[must_use]
    pub fn decode(value: u32) -> Option<Self> {
        let vcpu = u8::try_from(value >> 8).ok().filter(|vcpu| u64::from(*vcpu) < VCPUS_MAX)?;
        Some(match (value & 0xff) as u8 {
            BELL_FILLED => Self::Filled { vcpu },
            BELL_VERIFIED => Self::Verified { vcpu },
            BELL_STOPPED => Self::Stopped { vcpu },
            BELL_FAULT => Self::Fault { vcpu },
            BELL_PANIC => Self::Panic { vcpu },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_event_and_vcpu() {
        assert_eq!(Doorbell::decode(0x701), Some(Doorbell::Filled { vcpu: 7 }));
        assert_eq!(Doorbell::decode(0x005), Some(Doorbell::Panic { vcpu: 0 }));
    }

    #[test]
    fn ignores_unknown_values() {
        for value in [0, 6, 0x801, 0x1_0001, u32::MAX] {
            assert_eq!(Doorbell::decode(value), None, "{value:#x}");
        }
    }
}
