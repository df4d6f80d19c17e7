//! The handler of `SIGSYS`: reports the refused system call and its thread, and ends the process.

use std::io;

use vmm_sys_util::signal::register_signal_handler;

use super::calls::NAMED_CALLS;

/// Exit code after a refused system call: the one that a shell reports for `SIGSYS`.
const EXIT_CODE: i32 = 128 + libc::SIGSYS;
/// Offset of `si_syscall` in `siginfo_t`, in units of 4 bytes (`asm-generic/siginfo.h`, 64 bits).
const SYSCALL_AT: usize = 6;
/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 200;

/// Installs the handler.
///
/// # Errors
/// If the system refuses.
pub(super) fn listen() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_refused)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Neither allocates nor takes a lock: the signal may interrupt a thread anywhere.
extern "C" fn on_refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a `siginfo_t` of 128 bytes; for SIGSYS this field holds the system
    // call.
    let call = unsafe { info.cast::<i32>().add(SYSCALL_AT).read() };
    let mut message = Message { bytes: [0; MESSAGE_BYTES_MAX], len: 0 };
    message.add(b"lighter: the guest's process tried a forbidden system call: ");
    if let Some((_, name)) = NAMED_CALLS.iter().find(|(number, _)| *number == i64::from(call)) {
        message.add(name.as_bytes());
        message.add(b" (");
        message.add_number(call);
        message.add(b")");
    } else {
        message.add(b"number ");
        message.add_number(call);
    }
    message.add(b", in thread ");
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    message.add(name.split(|byte| *byte == 0).next().unwrap_or_default());
    message.add(b"; the process ends\n");
    // SAFETY: the bytes are the message's own; a failed write is ignored.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, message.bytes.as_ptr().cast(), message.len) };
    // SAFETY: ends the process without running any more of its code.
    unsafe { libc::_exit(EXIT_CODE) }
}

struct Message {
    bytes: [u8; MESSAGE_BYTES_MAX],
    len: usize,
}

impl Message {
    fn add(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn add_number(&mut self, number: i32) {
        let mut divisor = 1_000_000_000;
        let number = number.unsigned_abs();
        while divisor > 1 && number / divisor == 0 {
            divisor /= 10;
        }
        while divisor > 0 {
            self.add(&[b'0' + (number / divisor % 10) as u8]);
            divisor /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_and_long_messages_cut() {
        for number in [0, 7, 10, 59, 1_234_567_890] {
            let mut message = Message { bytes: [0; MESSAGE_BYTES_MAX], len: 0 };
            message.add_number(number);
            assert_eq!(message.bytes[..message.len], *number.to_string().as_bytes());
            message.add(&[b'x'; MESSAGE_BYTES_MAX]);
            assert_eq!(message.len, MESSAGE_BYTES_MAX);
        }
    }
}
