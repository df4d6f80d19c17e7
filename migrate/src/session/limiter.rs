//! The bandwidth limit of a migration.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Allowance that may accumulate while nothing is sent, as time.
const BURST: Duration = Duration::from_millis(20);

/// A token bucket that may go into debt: a frame is sent whole, and later ones wait for it.
#[derive(Debug)]
pub(super) struct Limiter {
    bucket: Mutex<Bucket>,
    changed: Notify,
}

#[derive(Debug)]
struct Bucket {
    /// None for no limit.
    bytes_per_second: Option<f64>,
    bytes: f64,
    filled_at: Instant,
}

impl Limiter {
    /// Limits all streams together to `bytes_per_second`.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        let bytes_per_second = bytes_per_second.map(|rate| rate.max(1) as f64);
        let bucket = Bucket { bytes_per_second, bytes: 0.0, filled_at: Instant::now() };
        Self { bucket: Mutex::new(bucket), changed: Notify::new() }
    }

    /// Changes the limit, 0 for none; callers that are waiting wait no longer.
    pub(super) fn set(&self, bytes_per_second: u64) {
        let mut bucket = self.lock();
        bucket.bytes_per_second = (bytes_per_second > 0).then_some(bytes_per_second as f64);
        // What was sent at another rate is no debt.
        (bucket.bytes, bucket.filled_at) = (0.0, Instant::now());
        drop(bucket);
        self.changed.notify_waiters();
    }

    /// Waits until `bytes` more may be sent.
    pub(super) async fn take(&self, bytes: usize) {
        let changed = self.changed.notified();
        let wait = self.lock().take(bytes as f64, Instant::now());
        if wait.is_zero() {
            return;
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = changed => {}
        }
    }

    /// Counts `bytes` that are sent without a wait; later ones wait for them.
    pub(super) fn count(&self, bytes: usize) {
        self.lock().take(bytes as f64, Instant::now());
    }

    /// Waits until all bytes so far may have been sent, those included that are counted meanwhile.
    pub(super) async fn paid(&self) {
        loop {
            let changed = self.changed.notified();
            let wait = self.lock().take(0.0, Instant::now());
            if wait.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// Takes `bytes` out; returns how long to wait before they may be sent.
    fn take(&mut self, bytes: f64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let fresh = now.duration_since(self.filled_at).as_secs_f64() * rate;
        self.filled_at = now;
        self.bytes = (self.bytes + fresh).min(BURST.as_secs_f64() * rate) - bytes;
        if self.bytes >= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.bytes / rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_the_rate() {
        takes_a_second(&Limiter::new(Some(10_000_000)), 10_000_000).await;
    }

    /// Sends `bytes` in pieces, and asserts that it takes a second.
    async fn takes_a_second(limiter: &Limiter, bytes: usize) {
        let start = Instant::now();
        for _ in 0..bytes / 100_000 {
            limiter.take(100_000).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((0.97..1.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_limit_holds_from_now_on() {
        let limiter = Limiter::new(Some(10_000_000));
        limiter.take(1_000_000).await;
        limiter.set(1_000_000);
        takes_a_second(&limiter, 1_000_000).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_without_a_wait_is_waited_for_later() {
        let limiter = std::sync::Arc::new(Limiter::new(Some(1_000_000)));
        let start = Instant::now();
        limiter.count(500_000);
        assert!(start.elapsed().is_zero());
        let waiting = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.paid().await }
        });
        sleep(Duration::from_millis(100)).await;
        limiter.count(500_000);
        waiting.await.unwrap();
        let took = start.elapsed().as_secs_f64();
        assert!((0.97..1.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn removing_the_limit_releases_waiting_senders() {
        let limiter = std::sync::Arc::new(Limiter::new(Some(1)));
        let waiting = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.take(1_000_000).await }
        });
        tokio::task::yield_now().await;
        limiter.set(0);
        tokio::time::timeout(Duration::from_secs(1), waiting).await.unwrap().unwrap();
        limiter.take(1 << 40).await;
    }
}
