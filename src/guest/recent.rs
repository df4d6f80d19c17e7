//! An answer that is given for a while, to all who ask meanwhile.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The last answer, and when it was got.
#[derive(Debug)]
pub(super) struct Recent<T> {
    age_max: Duration,
    last: Mutex<Option<(Instant, T)>>,
}

impl<T: Clone> Recent<T> {
    /// For answers that are good for `age_max`.
    pub(super) fn new(age_max: Duration) -> Self {
        Self { age_max, last: Mutex::new(None) }
    }

    /// The last answer while it is good, or else a new one from `ask`. Others wait for it meanwhile.
    pub(super) fn get(&self, ask: impl FnOnce() -> T) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = last.as_ref().filter(|(got, _)| got.elapsed() < self.age_max) {
            return answer.clone();
        }
        let answer = ask();
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_who_ask_at_once_are_one() {
        let recent = Recent::new(Duration::MAX);
        assert_eq!(recent.get(|| 1), 1);
        assert_eq!(recent.get(|| unreachable!("it was asked just now")), 1);
    }

    #[test]
    fn an_old_answer_is_not_given() {
        let recent = Recent::new(Duration::ZERO);
        assert_eq!(recent.get(|| 1), 1);
        assert_eq!(recent.get(|| 2), 2);
    }
}
