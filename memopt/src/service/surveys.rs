//! The most recent surveys of guests' pages, as long as they say what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::situation::{Guest, Survey};
use crate::step::Action;

/// The most recent surveys of guests' pages.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    by_guest: BTreeMap<String, Kept>,
    /// Host uptime when a step last changed a guest's pages.
    changed: BTreeMap<String, Duration>,
}

#[derive(Debug)]
struct Kept {
    /// The process that was surveyed; a survey does not apply to a restarted guest.
    pid: u32,
    /// Host uptime when it was taken.
    taken: Duration,
    survey: Survey,
}

/// A new survey of a guest.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) survey: Survey,
}

impl Surveys {
    /// Attaches the surveys to the guests, and drops those of processes that are gone.
    pub(super) fn fill(&mut self, guests: &mut [Guest], now: Duration) {
        for guest in guests {
            let Some(kept) = self.by_guest.get(&guest.name) else { continue };
            if kept.pid == guest.pid {
                let age = now.saturating_sub(kept.taken);
                guest.survey = Some(Survey { age, ..kept.survey.clone() });
            } else {
                self.by_guest.remove(&guest.name);
            }
        }
    }

    /// Drops the surveys of guests that no longer exist.
    pub(super) fn retain(&mut self, guests: &[Guest]) {
        let names: BTreeSet<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
        self.by_guest.retain(|name, _| names.contains(name.as_str()));
        self.changed.retain(|name, _| names.contains(name.as_str()));
    }

    /// Stores surveys made between `begun` and `taken`, except those of guests that a step changed
    /// meanwhile.
    pub(super) fn keep(&mut self, found: Vec<Known>, begun: Duration, taken: Duration) {
        for Known { name, pid, survey } in found {
            if self.changed.get(&name).is_some_and(|changed| *changed >= begun) {
                continue;
            }
            self.by_guest.insert(name, Kept { pid, taken, survey });
        }
    }

    /// Updates the surveys with the effect of a step.
    pub(super) fn acted(&mut self, action: &Action, now: Duration) {
        match action.guest() {
            Some(guest) if action.changes_pages() => {
                self.changed.insert(guest.to_owned(), now);
                let kept = self.by_guest.get_mut(guest).into_iter();
                kept.for_each(|kept| action.note(&mut kept.survey));
            }
            Some(_) => {}
            None => self.by_guest.values_mut().for_each(|kept| action.note(&mut kept.survey)),
        }
    }

    /// Drops the survey of a guest after a step failed half-way, because its effect is unknown.
    pub(super) fn forget(&mut self, guest: &str, now: Duration) {
        self.changed.insert(guest.to_owned(), now);
        self.by_guest.remove(guest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture;
    use crate::situation::Chunk;
    use crate::step::ChunkRange;

    fn guest(name: &str, pid: u32) -> Guest {
        Guest { pid, ..fixture::guest(name, 64 << 20) }
    }

    fn survey_of(chunks: u32) -> Survey {
        let chunk =
            |index| Chunk { index, present_pages: 512, template_pages: 9, ..Chunk::default() };
        let chunks = (0..chunks).map(chunk).collect();
        Survey { age: Duration::ZERO, sampled: 1.0, copies: 2.0, chunks }
    }

    #[test]
    fn a_survey_belongs_to_the_surveyed_process() {
        let mut surveys = Surveys::default();
        let found = |name: &str| Known { name: name.to_owned(), pid: 7, survey: survey_of(2) };
        surveys.keep(vec![found("a"), found("b"), found("c")], Duration::ZERO, Duration::ZERO);
        let mut guests = [guest("a", 7), guest("b", 8)];
        surveys.fill(&mut guests, Duration::ZERO);
        assert_eq!(guests[0].survey.as_ref().unwrap().chunks.len(), 2);
        assert!(guests[1].survey.is_none(), "another process");
        surveys.retain(&guests);
        surveys.forget("nobody", Duration::ZERO);
        assert_eq!(surveys.by_guest.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_survey_that_began_before_a_step_is_ignored_for_its_guest() {
        let mut surveys = Surveys::default();
        let (begun, now) = (Duration::ZERO, Duration::from_secs(5));
        let survey = survey_of(1);
        let found = || vec![Known { name: "a".to_owned(), pid: 7, survey: survey.clone() }];
        let marked = |surveys: &Surveys| surveys.by_guest["a"].survey.chunks[0].is_mergeable;
        surveys.keep(found(), begun, now);
        let chunks = vec![ChunkRange { first: 0, count: 1 }];
        surveys.acted(&Action::Merge { guest: "a".to_owned(), chunks }, now);
        surveys.keep(found(), begun, now);
        assert!(marked(&surveys), "what the step has changed");
        surveys.keep(found(), now + Duration::from_secs(1), now + Duration::from_secs(2));
        assert!(!marked(&surveys), "what was found since");
        surveys.forget("a", now + Duration::from_secs(3));
        surveys.keep(found(), begun, now);
        assert!(surveys.by_guest.is_empty());
    }
}
