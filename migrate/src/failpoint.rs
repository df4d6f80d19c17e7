//! Points at which a test can hold, cut or corrupt a migration; compiled out without the
//! `failpoints` feature.
//!
//! `LIGHTER_FAILPOINT=POINT:ACTION[,POINT:ACTION...]`; each entry fires once, so a point that is
//! given twice fires twice. A point is a side, a kind of step and a name, in lower case:
//! `source.send.commit`, `destination.recv.state`, `source.act.sendround`, `source.data.pages`.
//! Names are those of messages and actions. Actions:
//! `hold` (skips the step), `freeze` (skips it, and suspends this side's deadlines until it loses
//! its connection), `stall=PATH` (creates that file and blocks its thread until the file is gone),
//! `panic` (panics in the session's thread), `cut` (closes the connections), `flip` (corrupts a
//! byte of the frame), `pass` (lets the step happen: the entry after it is for the next one).
//!
//! `LIGHTER_PROTOCOL_VERSIONS=7,8` makes this process speak those versions and no others, and
//! `LIGHTER_PROTOCOL_WITHOUT=128` leaves the features of these bits out of its offer.

/// What happens to the step at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "failpoints"),
    expect(dead_code, reason = "only failpoints make anything else happen than Go")
)]
pub(crate) enum Passage {
    /// The step happens as usual.
    Go,
    /// The step does not happen.
    Hold,
    /// The connections are closed at the step; a message is then not sent.
    Cut,
    /// The frame is sent with a corrupted byte.
    Flip,
}

#[cfg(not(feature = "failpoints"))]
mod enabled {
    use super::Passage;

    /// No failpoints: the feature is off.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Failpoints;

    impl Failpoints {
        pub(crate) fn from_environment() -> Self {
            Self
        }

        pub(crate) fn reach(&self, _moment: &str, _name: &str) -> Passage {
            Passage::Go
        }

        pub(crate) fn is_frozen(&self) -> bool {
            false
        }

        pub(crate) fn thaw(&self) {}
    }

    /// Returns none: the versions cannot be overridden without the feature.
    pub(crate) fn versions() -> Option<Vec<u16>> {
        None
    }

    /// Returns 0: no features can be left out without the feature.
    pub(crate) fn without() -> u64 {
        0
    }
}

#[cfg(feature = "failpoints")]
mod enabled {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};
    use std::time::{Duration, Instant};

    use super::Passage;

    /// Longest stall, so that a test that died leaves no processes that block forever.
    const STALL_LONGEST: Duration = Duration::from_secs(900);
    /// How often a stalled thread checks whether it may continue.
    const STALL_INTERVAL: Duration = Duration::from_millis(5);

    /// The points of this process: each fires once in its lifetime, however many migrations run.
    static OF_PROCESS: OnceLock<Failpoints> = OnceLock::new();

    /// The points that are set.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Failpoints {
        points: Arc<Vec<Point>>,
        frozen: Arc<AtomicBool>,
    }

    #[derive(Debug)]
    struct Point {
        at: String,
        action: Action,
        struck: AtomicBool,
    }

    #[derive(Debug, Clone)]
    enum Action {
        Pass(Passage),
        Freeze,
        Stall(PathBuf),
        Panic,
    }

    impl Failpoints {
        /// Reads `LIGHTER_FAILPOINT`; entries that cannot be parsed are logged and skipped.
        pub(crate) fn from_environment() -> Self {
            let read = || Self::parse(&std::env::var("LIGHTER_FAILPOINT").unwrap_or_default());
            OF_PROCESS.get_or_init(read).clone()
        }

        /// As [`Failpoints::from_environment`], from a string.
        pub(crate) fn parse(text: &str) -> Self {
            let points = text.split(',').filter(|item| !item.is_empty());
            Self { points: Arc::new(points.filter_map(Point::parse).collect()), ..Self::default() }
        }

        /// Returns whether this side's deadlines are suspended.
        pub(crate) fn is_frozen(&self) -> bool {
            self.frozen.load(Ordering::Relaxed)
        }

        /// Ends the suspension of deadlines.
        pub(crate) fn thaw(&self) {
            self.frozen.store(false, Ordering::Relaxed);
        }

        /// Returns what happens to the step at the point `moment.name`; does not return from
        /// `panic`.
        pub(crate) fn reach(&self, moment: &str, name: &str) -> Passage {
            let fires = |point: &&Point| {
                point.is(moment, name) && !point.struck.swap(true, Ordering::Relaxed)
            };
            let Some(point) = self.points.iter().find(fires) else { return Passage::Go };
            if matches!(point.action, Action::Pass(Passage::Go)) {
                return Passage::Go;
            }
            tracing::warn!(point = point.at, "failpoint");
            match &point.action {
                Action::Pass(passage) => *passage,
                Action::Freeze => {
                    self.frozen.store(true, Ordering::Relaxed);
                    Passage::Hold
                }
                Action::Stall(path) => {
                    stall(path);
                    Passage::Go
                }
                Action::Panic => panic!("a failpoint"),
            }
        }
    }

    impl Point {
        fn parse(item: &str) -> Option<Self> {
            let action = match item.rsplit_once(':')?.1 {
                "hold" => Action::Pass(Passage::Hold),
                "freeze" => Action::Freeze,
                "cut" => Action::Pass(Passage::Cut),
                "flip" => Action::Pass(Passage::Flip),
                "pass" => Action::Pass(Passage::Go),
                "panic" => Action::Panic,
                other if other.starts_with("stall=") => {
                    Action::Stall(other["stall=".len()..].into())
                }
                other => {
                    tracing::error!(other, "unknown failpoint action");
                    return None;
                }
            };
            let at = item.rsplit_once(':')?.0.to_owned();
            Some(Self { at, action, struck: AtomicBool::new(false) })
        }

        fn is(&self, moment: &str, name: &str) -> bool {
            self.at
                .strip_prefix(moment)
                .and_then(|rest| rest.strip_prefix('.'))
                .is_some_and(|rest| rest.eq_ignore_ascii_case(name))
        }
    }

    fn stall(path: &Path) {
        if let Err(error) = std::fs::write(path, "") {
            return tracing::error!(%error, path = %path.display(), "cannot stall");
        }
        let start = Instant::now();
        while path.exists() && start.elapsed() < STALL_LONGEST {
            std::thread::sleep(STALL_INTERVAL);
        }
    }

    /// Returns the versions that `LIGHTER_PROTOCOL_VERSIONS` lists.
    pub(crate) fn versions() -> Option<Vec<u16>> {
        let text = std::env::var("LIGHTER_PROTOCOL_VERSIONS").ok()?;
        Some(text.split(',').filter_map(|version| version.parse().ok()).collect())
    }

    /// Returns the bits of the features that `LIGHTER_PROTOCOL_WITHOUT` leaves out.
    pub(crate) fn without() -> u64 {
        let text = std::env::var("LIGHTER_PROTOCOL_WITHOUT").unwrap_or_default();
        text.parse().unwrap_or_default()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_failpoint_fires_once_and_only_at_its_place() {
            let points = Failpoints::parse("source.send.commit:hold,destination.recv.state:cut");
            assert_eq!(points.reach("source.send", "State"), Passage::Go);
            assert_eq!(points.reach("destination.recv", "State"), Passage::Cut);
            assert_eq!(points.reach("source.send", "Commit"), Passage::Hold);
            assert_eq!(points.reach("source.send", "Commit"), Passage::Go);
        }

        #[test]
        fn a_failpoint_that_is_given_twice_fires_twice() {
            let points = Failpoints::parse(
                "source.data.pages:flip,source.data.pages:pass,source.data.pages:cut",
            );
            let reached = [(); 4].map(|()| points.reach("source.data", "pages"));
            assert_eq!(reached, [Passage::Flip, Passage::Go, Passage::Cut, Passage::Go]);
        }
    }
}

pub(crate) use enabled::{Failpoints, versions, without};
