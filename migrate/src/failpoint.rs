//! Points at which a test can hold, kill, cut or corrupt a migration; gone without the `failpoints` feature.
//!
//! `LIGHTER_FAILPOINT=POINT:ACTION[,POINT:ACTION...]`, each of which strikes once. A point is a side, a
//! moment and a name in lower case: `source.send.commit`, `destination.recv.state`,
//! `source.act.sendround`, `source.data.pages`. Names are those of messages and actions. Actions: `hold`
//! (what was to happen here does not), `exit` (the process is killed), `cut` (the connections are closed),
//! `flip` (a byte of the frame is damaged).

/// What is to happen at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
pub(crate) enum Passage {
    /// Nothing special.
    Go,
    /// What was to happen does not.
    Hold,
    /// The connections are closed first.
    Cut,
    /// The frame is damaged.
    Flip,
}

#[cfg(not(feature = "failpoints"))]
mod enabled {
    use super::Passage;

    /// No points.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Failpoints;

    impl Failpoints {
        pub(crate) fn from_environment() -> Self {
            Self
        }

        pub(crate) fn reach(&self, _moment: &str, _name: &str) -> Passage {
            Passage::Go
        }
    }
}

#[cfg(feature = "failpoints")]
mod enabled {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Passage;

    /// The points that are set.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Failpoints(Arc<Vec<Point>>);

    #[derive(Debug)]
    struct Point {
        at: String,
        action: Action,
        struck: AtomicBool,
    }

    #[derive(Debug, Clone, Copy)]
    enum Action {
        Pass(Passage),
        Exit,
    }

    impl Failpoints {
        /// Reads `LIGHTER_FAILPOINT`; what is not understood is logged and left out.
        pub(crate) fn from_environment() -> Self {
            Self::parse(&std::env::var("LIGHTER_FAILPOINT").unwrap_or_default())
        }

        /// As [`Failpoints::from_environment`], from a text.
        pub(crate) fn parse(text: &str) -> Self {
            let points = text.split(',').filter(|item| !item.is_empty());
            Self(Arc::new(points.filter_map(Point::parse).collect()))
        }

        /// Says what is to happen at the point `moment.name`; does not return from `exit`.
        pub(crate) fn reach(&self, moment: &str, name: &str) -> Passage {
            let Some(point) = self.0.iter().find(|point| point.is(moment, name)) else {
                return Passage::Go;
            };
            if point.struck.swap(true, Ordering::Relaxed) {
                return Passage::Go;
            }
            tracing::warn!(point = point.at, "failpoint");
            match point.action {
                Action::Pass(passage) => passage,
                Action::Exit => kill_self(),
            }
        }
    }

    impl Point {
        fn parse(item: &str) -> Option<Self> {
            let action = match item.rsplit_once(':')?.1 {
                "hold" => Action::Pass(Passage::Hold),
                "cut" => Action::Pass(Passage::Cut),
                "flip" => Action::Pass(Passage::Flip),
                "exit" => Action::Exit,
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

    /// Dies as from `kill -9`: nothing is cleaned up.
    fn kill_self() -> ! {
        let pid = std::process::id().to_string();
        let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
        std::process::abort()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_strikes_once_and_only_where_it_is() {
            let points = Failpoints::parse("source.send.commit:hold,destination.recv.state:cut");
            assert_eq!(points.reach("source.send", "State"), Passage::Go);
            assert_eq!(points.reach("destination.recv", "State"), Passage::Cut);
            assert_eq!(points.reach("source.send", "Commit"), Passage::Hold);
            assert_eq!(points.reach("source.send", "Commit"), Passage::Go);
        }
    }
}

pub(crate) use enabled::Failpoints;
