//! Slices: how long a thread runs until another one of its core does.

use std::io;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use crate::sys::sched::Scheduling;

/// A slice that is shorter than the kernel's own (`base_slice_ns` of Linux's `kernel/sched/fair.c`,
/// 0.7 ms and more): a thread that has it and wakes up interrupts one that has a longer one.
const SHORT: Duration = Duration::from_micros(200);

/// Makes `call` on a thread with short slices, which the threads that it starts have as well: when
/// one wakes up, it need not wait until the slice of a vCPU on its core is over. They get no larger
/// share of the core. Kernels before 6.12 have slices of one length.
///
/// # Errors
/// If no thread could be started.
pub fn with_short_slices<T: Send>(call: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|own| (own > SHORT).then_some(SHORT), call)
}

/// Makes `call` on a thread with the kernel's own slices, also if the calling one has short slices:
/// threads of a guest are started so.
///
/// # Errors
/// If no thread could be started.
pub fn with_usual_slices<T: Send>(call: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|own| (own == SHORT).then_some(Duration::ZERO), call)
}

/// Makes `call` on a thread whose slices, those of the calling one at first, `change`.
fn on_a_thread<T: Send>(
    change: fn(Duration) -> Option<Duration>,
    call: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    let body = || {
        let own = Scheduling::of_this_thread().ok().filter(Scheduling::is_fair);
        let changed = own.and_then(|own| Some(own.with_slice(change(own.slice())?)));
        // With other slices, it only takes longer.
        if let Some(Err(error)) = changed.map(|changed| changed.apply()) {
            tracing::debug!(%error, "a thread keeps its slices");
        }
        call()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("slices".to_owned()).spawn_scoped(scope, body)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slice of this thread, by the kernel; zero before 6.12.
    fn slice() -> Duration {
        Scheduling::of_this_thread().unwrap().slice()
    }

    #[test]
    fn threads_have_the_slices_of_those_that_start_them() {
        let own = slice();
        let (started, of_guest) = with_short_slices(|| {
            let started = thread::spawn(slice).join().unwrap();
            (started, with_usual_slices(|| thread::spawn(slice).join().unwrap()).unwrap())
        })
        .unwrap();
        assert_eq!(started, own.min(SHORT));
        assert_eq!([of_guest, slice()], [own; 2]);
    }

    #[test]
    #[should_panic(expected = "in vain")]
    fn a_panic_reaches_the_caller() {
        let _ = with_short_slices(|| panic!("in vain"));
    }
}
