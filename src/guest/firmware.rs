//! Whether a guest's firmware has found nothing to boot, which only its console says: EDK2 then
//! waits in its shell or at its menu, and the guest looks as if it ran.

use std::sync::{Mutex, PoisonError};

use vmm_core::boot::BootRecord;

use super::machine::Machine;
use super::process::GuestProcess;
use crate::api::events::What;

/// Output after a boot that may be the firmware's, in bytes. What comes later is from the system
/// that it has booted.
const FIRMWARE_BYTES_MAX: u32 = 64 << 10;
/// Output after which the firmware no longer waits, in bytes: a user, or a script on a disk, has
/// booted something from the shell.
const WAITING_BYTES_MAX: u32 = 16 << 10;

/// How EDK2 begins its shell, which is the last of its boot options, and what it says where it has
/// no shell. The first byte of each is nowhere else in it, so that [`BootOutput::feed`] finds it.
const MESSAGES: [&[u8]; 2] =
    [b"UEFI Interactive Shell v", b"BdsDxe: No bootable option or device was found"];

/// What the console has shown since a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BootOutput {
    waits: bool,
    /// How many further bytes are of interest.
    bytes_left: u32,
    /// How many bytes of each message the output ends with.
    matched: [usize; MESSAGES.len()],
}

impl BootOutput {
    /// Nothing yet, of a guest that boots.
    const NOTHING: Self =
        Self { waits: false, bytes_left: FIRMWARE_BYTES_MAX, matched: [0; MESSAGES.len()] };

    /// Takes further output into account, which may begin and end anywhere.
    fn feed(&mut self, output: &[u8]) {
        for byte in output {
            let Some(bytes_left) = self.bytes_left.checked_sub(1) else {
                self.waits = false;
                return;
            };
            self.bytes_left = bytes_left;
            if !self.waits && self.ends_message(*byte) {
                (self.waits, self.bytes_left) = (true, WAITING_BYTES_MAX);
            }
        }
    }

    /// Returns whether a message ends with this byte.
    fn ends_message(&mut self, byte: u8) -> bool {
        for (message, matched) in MESSAGES.iter().zip(&mut self.matched) {
            *matched = match message.get(*matched) {
                Some(next) if *next == byte => *matched + 1,
                _ => usize::from(message[0] == byte),
            };
        }
        MESSAGES.iter().zip(self.matched).any(|(message, matched)| message.len() == matched)
    }
}

/// Reads a guest's console after each of its boots here.
#[derive(Debug)]
pub(super) struct FirmwareWatch(Mutex<Watched>);

#[derive(Debug)]
struct Watched {
    known: BootOutput,
    /// Number of resets before the boot; `None` before the guest has booted in this process.
    boot: Option<u64>,
    /// Offset in the output up to which it was read.
    read: u64,
}

impl Default for FirmwareWatch {
    fn default() -> Self {
        Self(Mutex::new(Watched { known: BootOutput::NOTHING, boot: None, read: 0 }))
    }
}

impl FirmwareWatch {
    /// Reads what is new; returns whether the firmware has found nothing to boot since the last
    /// call.
    fn read(&self, machine: &Machine) -> bool {
        let vm = machine.vm();
        if !matches!(vm.boot_record(), Some(BootRecord::Firmware(_))) {
            return false;
        }
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let output = machine.scrollback().read(watched.read);
        watched.read = output.next();
        // What a guest that has arrived or was restored has printed since its boot is not all here.
        let Some(boot) = vm.since_boot().map(|_| vm.restarts().count) else { return false };
        if watched.boot != Some(boot) {
            (watched.boot, watched.known) = (Some(boot), BootOutput::NOTHING);
        }
        let waited = watched.known.waits;
        watched.known.feed(&output.bytes);
        watched.known.waits && !waited
    }

    /// Returns whether the firmware has found nothing to boot and waits.
    pub(super) fn waits(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.waits
    }
}

impl GuestProcess {
    /// Reports a guest whose firmware has found nothing to boot; to be called again and again.
    pub(super) fn poll_firmware(&self) {
        if self.machine().is_some_and(|machine| self.firmware().read(machine)) {
            tracing::warn!(
                guest = %self.name(),
                "the firmware has found nothing to boot: no disk has an EFI system partition with \\EFI\\BOOT\\BOOTX64.EFI, nor what \
                 the guest's UEFI variables name"
            );
            self.events().once(What::NothingToBoot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What EDK2 says when it finds no boot loader.
    const SHELL: &str = "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/\
        Pci(0x2,0x0): Not Found\r\nUEFI Interactive Shell v2.2\r\nEDK II\r\nShell> ";
    const NO_SHELL: &str = "BdsDxe: No bootable option or device was found.\r\n\
        BdsDxe: Press any key to enter the Boot Manager Menu.\r\n";

    fn after(output: &[&[u8]]) -> BootOutput {
        let mut known = BootOutput::NOTHING;
        output.iter().for_each(|output| known.feed(output));
        known
    }

    #[test]
    fn firmware_that_finds_nothing_says_so_in_pieces_of_any_size() {
        for text in [SHELL, NO_SHELL] {
            assert!(after(&[text.as_bytes()]).waits, "{text}");
            let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
            assert!(after(&bytes).waits, "{text}");
            let stuttered =
                text.replace("UEFI Inter", "UEFUEFI Inter").replace("BdsDxe: No", "BBdsDxe: No");
            assert!(after(&[stuttered.as_bytes()]).waits, "{stuttered}");
        }
        for other in ["UEFI Interactive  Shell v", "BdsDxe: starting Boot0001", "", "GRUB> "] {
            assert!(!after(&[other.as_bytes()]).waits, "{other}");
        }
    }

    #[test]
    fn messages_do_not_begin_within_themselves() {
        for message in MESSAGES {
            assert!(!message[1..].contains(&message[0]));
        }
    }

    #[test]
    fn what_a_booted_system_prints_does_not_count() {
        let system = vec![b'.'; FIRMWARE_BYTES_MAX as usize];
        assert!(!after(&[&system, SHELL.as_bytes()]).waits);
        assert!(after(&[&system[..1 << 10], SHELL.as_bytes()]).waits);
    }

    #[test]
    fn firmware_waits_until_something_was_booted_from_its_shell() {
        let more = vec![b'.'; WAITING_BYTES_MAX as usize];
        assert!(after(&[SHELL.as_bytes(), &more[..1 << 10]]).waits);
        let booted = after(&[SHELL.as_bytes(), &more]);
        assert!(!booted.waits);
        assert_eq!(after(&[SHELL.as_bytes(), &more, SHELL.as_bytes()]), booted);
    }
}
