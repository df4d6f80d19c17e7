//! Gets a vCPU's thread out of `KVM_RUN`, without ever losing the request.
//!
//! A kick is a real-time signal to the thread. Its handler sets `immediate_exit` in the thread's
//! own `kvm_run`, so it makes no difference whether the signal arrives while the thread is in the
//! guest (`KVM_RUN` fails with `EINTR`), or just before it enters (`KVM_RUN` sees the flag and
//! returns at once); see `immediate_exit` in Documentation/virt/kvm/api.rst.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

thread_local! {
    /// This thread's `immediate_exit` byte; null in a thread that runs no vCPU. It is a `const`
    /// value without a destructor, so reading it in a signal handler initialises nothing.
    static EXIT_FLAG: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Lets the current thread be kicked, until dropped. It must be dropped before the vCPU, as
/// `vcpu::thread` does: the signal handler writes into memory that the vCPU has mapped.
#[derive(Debug)]
pub(crate) struct Kickable {
    tid: libc::pid_t,
}

impl Kickable {
    /// Points the signal handler at the `immediate_exit` byte of `vcpu`, which this thread runs.
    ///
    /// # Errors
    /// If the signal handler cannot be installed.
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
        INSTALLED
            .get_or_init(|| {
                register_signal_handler(SIGRTMIN(), on_kick).map_err(|error| error.errno())
            })
            .map_err(kvm_ioctls::Error::new)?;
        // A thread inherits its creator's signal mask. Failure means that the signal was not
        // blocked.
        let _ = unblock_signal(SIGRTMIN());
        EXIT_FLAG.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() };
        Ok(Self { tid })
    }

    /// The thread ID for [`kick`].
    pub(crate) fn tid(&self) -> libc::pid_t {
        self.tid
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        EXIT_FLAG.set(ptr::null_mut());
    }
}

/// Kicks the thread `tid` of this process. Harmless if the thread has ended or runs no vCPU.
pub(crate) fn kick(tid: libc::pid_t) {
    // SAFETY: tgkill only sends a signal, and only to a thread of this process; the handler is
    // installed before any tid is known.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, SIGRTMIN()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = EXIT_FLAG.get();
    if !flag.is_null() {
        // SAFETY: the pointer is into this thread's mapping of `kvm_run`, which outlives the
        // `Kickable` that set it and resets it on drop; the write of one byte is atomic.
        unsafe { ptr::write_volatile(flag, 1) };
    }
}
