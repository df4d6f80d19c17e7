//! Serializes the records of a state machine: one at a time, and the latest replaces those queued.

/// Keeps at most one record outstanding. A state requested meanwhile is queued until the answer; of
/// several, only the last is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordSlot<S> {
    outstanding: Option<S>,
    queued: Option<S>,
    last_asked: Option<S>,
}

impl<S: Copy> RecordSlot<S> {
    pub(crate) fn new() -> Self {
        Self { outstanding: None, queued: None, last_asked: None }
    }

    /// Requests that `state` is made durable; returns it if it is to be written now.
    #[must_use]
    pub(crate) fn ask(&mut self, state: S) -> Option<S> {
        self.last_asked = Some(state);
        if self.outstanding.is_some() {
            self.queued = Some(state);
            return None;
        }
        self.outstanding = Some(state);
        self.outstanding
    }

    /// Handles an answer: returns the state that it is about, and the next one to be written.
    pub(crate) fn answered(&mut self) -> (Option<S>, Option<S>) {
        let answered = self.outstanding.take();
        self.outstanding = self.queued.take();
        (answered, self.outstanding)
    }

    /// Returns the state that was last requested, once it is answered.
    pub(crate) fn last_answered(&self) -> Option<S> {
        self.last_asked.filter(|_| self.outstanding.is_none())
    }

    /// Returns the state that the record has, or will have.
    pub(crate) fn last_asked(&self) -> Option<S> {
        self.last_asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_one_at_a_time_and_the_latest_of_those_that_wait() {
        let mut slot = RecordSlot::new();
        assert_eq!(slot.ask(1), Some(1));
        assert_eq!(slot.ask(2), None);
        assert_eq!(slot.ask(3), None);

        assert_eq!(slot.answered(), (Some(1), Some(3)));
        assert_eq!(slot.answered(), (Some(3), None));
        assert_eq!(slot.answered(), (None, None));
        assert_eq!(slot.last_asked(), Some(3));
    }
}
