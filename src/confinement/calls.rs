//! The allow list of a guest's process: all its system calls are here.
//!
//! All threads share one list, because they share their memory: an attacker who controls one thread
//! can make the others do its work.

use libc::{c_long, *};
use vmm_core::memory::{MISSING_REQUESTS, PAGEMAP_SCAN_REQUEST, WRITE_PROTECTION_REQUESTS};

/// `ioctl` requests of devices, as (mask, value of the masked request). `_IOC_TYPE` is the second
/// byte, the number the first.
pub(super) const IOCTLS_OF_DEVICES: [(u64, u64); 4] = [
    // KVM (`KVMIO` of linux/kvm.h).
    (0xff00, 0xae00),
    // Block devices (linux/fs.h).
    (0xff00, 0x1200),
    // Taps (linux/if_tun.h), which share their type with terminals, but not their numbers.
    (0xffc0, 0x54c0),
    // Devices of the host that a client passes along (`VFIO_TYPE` of linux/vfio.h): the process
    // opens none.
    (0xff00, 0x3b00),
];

/// `ioctl` requests of vhost (`VHOST_VIRTIO` of linux/vhost.h), in the form of
/// [`IOCTLS_OF_DEVICES`], for a guest whose frames the kernel may carry.
pub(super) const IOCTLS_OF_VHOST: (u64, u64) = (0xff00, 0xaf00);

/// `ioctl` requests of files and terminals. `TIOCSTI` is left out: it injects input into the user's
/// terminal.
pub(super) const IOCTLS: [u64; 10] = [
    request(FIONBIO),
    request(FIOCLEX),
    request(FIONREAD),
    request(TCGETS),
    request(TCSETS),
    request(TCSETSW),
    request(TCSETSF),
    request(TIOCGWINSZ),
    request(TCGETS2),
    // On `/proc/self/pagemap`: how the guest's own pages are mapped.
    PAGEMAP_SCAN_REQUEST,
];

/// The 32 bits of a request that the kernel reads: glibc declares an unsigned long, musl an int.
const fn request(request: Ioctl) -> u64 {
    request as u32 as u64
}

/// `SIOCBRADDIF` of linux/sockios.h.
const ADD_TO_BRIDGE: u64 = 0x89a2;

/// `ioctl` requests about network interfaces, for an incoming guest, whose tap is created only
/// after confinement.
pub(super) const IOCTLS_OF_INTERFACES: [u64; 8] = [
    SIOCGIFINDEX,
    SIOCGIFMTU,
    SIOCSIFMTU,
    SIOCSIFHWADDR,
    SIOCGIFFLAGS,
    SIOCSIFFLAGS,
    SIOCETHTOOL,
    ADD_TO_BRIDGE,
];

/// `ioctl` requests of a userfaultfd, for a guest from a template. The userfaultfd exists before
/// confinement; no other can be created.
pub(super) const IOCTLS_OF_TEMPLATES: [u64; 2] = WRITE_PROTECTION_REQUESTS;

/// `ioctl` requests of a userfaultfd, for an incoming guest, whose memory may arrive after it. The
/// userfaultfd exists before confinement; no other can be created.
pub(super) const IOCTLS_OF_MISSING_PAGES: [u64; 6] = MISSING_REQUESTS;

/// Families of sockets: those of migrations, and those with which the C library resolves names.
/// Netlink is limited to routing, and Unix sockets to guests that connect to programs over vsock;
/// see [`super::seccomp`].
pub(super) const SOCKET_FAMILIES: [i32; 4] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];

/// Calls that set up an io_uring for disks. A guest that has its disks at the start has its rings
/// before confinement.
pub(super) const RINGS: [c_long; 2] = [SYS_io_uring_setup, SYS_io_uring_register];

/// Calls that are allowed without conditions, by purpose.
pub(super) const ALLOWED: &[&[c_long]] =
    &[&FILES, &MEMORY, &THREADS, &TIME, &WAITING, &NETWORK, &DISK_ENGINE, &IDENTITY];

/// Open files, and files that [`super::landlock`] lets the process open: musl calls `open`, glibc
/// `openat`.
const FILES: [c_long; 54] = [
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_lseek,
    SYS_open,
    SYS_openat,
    SYS_close,
    SYS_close_range,
    SYS_dup,
    SYS_dup2,
    SYS_dup3,
    SYS_fcntl,
    SYS_flock,
    SYS_stat,
    SYS_lstat,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fstatfs,
    SYS_statfs,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getcwd,
    SYS_getdents64,
    SYS_mkdir,
    SYS_mkdirat,
    SYS_rmdir,
    SYS_unlink,
    SYS_unlinkat,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_linkat,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_fadvise64,
    SYS_fchmod,
    SYS_fgetxattr,
    SYS_fsetxattr,
    SYS_fremovexattr,
    SYS_pipe2,
];

/// Memory; [`super::seccomp`] refuses executable mappings.
const MEMORY: [c_long; 13] = [
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_brk,
    SYS_mincore,
    SYS_mlock,
    SYS_munlock,
    SYS_mbind,
    SYS_get_mempolicy,
    SYS_memfd_create,
    SYS_membarrier,
];

/// Threads of this process, and signals between them; [`super::seccomp`] refuses new processes.
const THREADS: [c_long; 20] = [
    SYS_clone,
    SYS_clone3,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_futex,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_restart_syscall,
    SYS_prctl,
    SYS_exit,
    SYS_exit_group,
];

/// Clocks and random numbers.
const TIME: [c_long; 8] = [
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_time,
    SYS_getrandom,
    SYS_timerfd_settime,
];

const WAITING: [c_long; 9] = [
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_poll,
    SYS_ppoll,
    SYS_eventfd2,
    SYS_timerfd_create,
];

/// Migrations and the API; [`super::seccomp`] refuses most socket families.
const NETWORK: [c_long; 17] = [
    SYS_socket,
    SYS_listen,
    SYS_bind,
    SYS_connect,
    SYS_accept4,
    SYS_getsockname,
    SYS_getpeername,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_shutdown,
    SYS_uname,
];

/// Disks that are served by an io_uring. An incoming guest sets up its ring after confinement; for
/// others [`super::seccomp`] refuses [`RINGS`].
const DISK_ENGINE: [c_long; 3] = [SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register];

/// Identity of this process, and memory of the host.
const IDENTITY: [c_long; 9] = [
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_sysinfo,
    SYS_getrusage,
];

/// Calls that an attacker typically tries after a breakout. The message gives their names; it gives
/// only the number of any other call.
pub(super) const NAMED_CALLS: [(c_long, &str); 25] = [
    (SYS_execve, "execve"),
    (SYS_execveat, "execveat"),
    (SYS_fork, "fork"),
    (SYS_vfork, "vfork"),
    (SYS_ptrace, "ptrace"),
    (SYS_process_vm_readv, "process_vm_readv"),
    (SYS_process_vm_writev, "process_vm_writev"),
    (SYS_kill, "kill"),
    (SYS_tkill, "tkill"),
    (SYS_creat, "creat"),
    (SYS_link, "link"),
    (SYS_symlink, "symlink"),
    (SYS_chmod, "chmod"),
    (SYS_chown, "chown"),
    (SYS_mount, "mount"),
    (SYS_unshare, "unshare"),
    (SYS_setns, "setns"),
    (SYS_setuid, "setuid"),
    (SYS_bpf, "bpf"),
    (SYS_perf_event_open, "perf_event_open"),
    (SYS_userfaultfd, "userfaultfd"),
    (SYS_keyctl, "keyctl"),
    (SYS_prlimit64, "prlimit64"),
    (SYS_sched_setaffinity, "sched_setaffinity"),
    (SYS_ioctl, "ioctl"),
];
