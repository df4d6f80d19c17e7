//! Turns of threads on cores that they share with vCPUs.

use std::time::Duration;

use crate::sys::sched::Scheduling;

/// A turn that is shorter than those of vCPUs, which are 0.7 ms and more.
const SHORT: Duration = Duration::from_micros(200);

/// Calls `start`, and has the threads that it starts, and those that they start in turn, take short
/// turns: one that wakes up need not wait until the turn of a vCPU on its core is over. They get no
/// larger share of the core.
///
/// Linux has such turns since 6.12. On earlier kernels, or if the system refuses, `start` is merely
/// called.
pub fn in_short_turns<T>(start: impl FnOnce() -> T) -> T {
    let own = Scheduling::of_this_thread().ok().filter(Scheduling::is_in_turns);
    // Threads begin with the turns of the one that starts them.
    let shortened = own.filter(|own| own.with_turns_of(SHORT).apply().is_ok());
    let started = start();
    if let Some(own) = shortened
        && let Err(error) = own.apply()
    {
        tracing::warn!(%error, "a thread keeps its short turns");
    }
    started
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The turns of this thread, by the kernel; zero before 6.12.
    fn turns() -> Duration {
        Scheduling::of_this_thread().unwrap().turns()
    }

    #[test]
    fn only_the_threads_that_are_started_take_short_turns() {
        let own = turns();
        let started = in_short_turns(|| std::thread::spawn(turns)).join().unwrap();
        assert_eq!(started, if own.is_zero() { own } else { SHORT });
        assert_eq!(turns(), own);
    }
}
