//! An incoming guest whose peer sends anything at any time, while the host's own answers are valid.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use arbitrary::Arbitrary;
use migrate::destination::{Action, Destination, DestinationConfig, Event};
use migrate::error::OperatorChoice;
use migrate::guest::{
    DiskCopy, ExistingFile, GuestDescription, GuestError, Refusal, RefusalKind, RunState,
};
use migrate::memory::{CHUNK_BYTES, MemoryLayout, PageSet, Region};
use migrate::protocol::{
    Complaint, Decision, FEATURE_POSTCOPY, Features, MigrationId, Offer, PageMasks, Prepare,
    SavedState, SourceMessage,
};
use migrate::reason::Reason;
use migrate::record::DestinationState;
use migrate::text::Blob;

/// The events of a destination, in order.
#[derive(Debug, Arbitrary)]
pub struct Arrival {
    /// Whether memory follows the guest.
    is_postcopy: bool,
    /// Number of steps of `by_the_rules`, or of `by_the_rules_of_postcopy`, that are taken first.
    lawful: u8,
    #[arbitrary(with = crate::all)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Hear(Words),
    /// The host has completed its oldest open request.
    Answer {
        well: bool,
    },
    StreamEnded {
        stream: u8,
        announced: u8,
        applied: u8,
    },
    DataFailed,
    Connected,
    ConnectionLost,
    Cancel,
    Operator {
        run: bool,
    },
    Wait {
        ms: u16,
    },
    /// All memory that was missing is there, if any was.
    Fetched,
}

#[derive(Debug, Arbitrary)]
enum Words {
    Hello { other: u8, features: u64 },
    Resolve { other: u8, commit: bool },
    Disks(Vec<(u16, u64, u64, bool)>),
    Prepare { name: Option<Vec<u8>>, vcpus: u8, streams: u8 },
    Switchover,
    State { paused: bool, bytes: u8 },
    Commit,
    Abort,
    Finish,
    Node { port: u16 },
    Return,
    Missing { chunk: u8, pages: u64 },
    Serve { is_lost: bool },
    Withdraw,
    Continue { other: u8 },
}

impl Words {
    fn message(&self) -> SourceMessage {
        match self {
            Self::Hello { other, features } => {
                let offer = Offer { features: Features(*features), ..Offer::ours() };
                SourceMessage::Hello { migration: migration(*other), offer }
            }
            Self::Resolve { other, commit } => {
                let decision = if *commit { Decision::Commit } else { Decision::Aborted };
                SourceMessage::Resolve { migration: migration(*other), decision }
            }
            Self::Disks(disks) => {
                let disk = |(device, bytes, allocated, replace): &(u16, u64, u64, bool)| {
                    let existing =
                        if *replace { ExistingFile::Replace } else { ExistingFile::Keep };
                    DiskCopy {
                        device: *device,
                        bytes: *bytes,
                        allocated_bytes: *allocated,
                        existing,
                    }
                };
                SourceMessage::Disks(disks.iter().map(disk).collect())
            }
            Self::Prepare { name, vcpus, streams } => {
                let name = name.as_deref().unwrap_or(b"web-1");
                let guest = guest(&String::from_utf8_lossy(name), (*vcpus).into());
                SourceMessage::Prepare(Prepare { guest, streams: (*streams).into() })
            }
            Self::Switchover => SourceMessage::Switchover,
            Self::State { paused, bytes } => SourceMessage::State(SavedState {
                run_state: if *paused { RunState::Paused } else { RunState::Running },
                state: Blob(vec![1; (*bytes).into()]),
            }),
            Self::Commit => SourceMessage::Commit,
            Self::Abort => SourceMessage::Abort(Complaint::new(Reason::Other, "enough")),
            Self::Finish => SourceMessage::Finish,
            Self::Node { port } => {
                SourceMessage::Node { port: NonZeroU16::new(*port).unwrap_or(NonZeroU16::MIN) }
            }
            Self::Return => SourceMessage::Return,
            Self::Missing { chunk, pages } => {
                let mut set = PageSet::empty(256);
                set.words_mut()[usize::from(*chunk)] = *pages;
                SourceMessage::Missing(PageMasks::of(&set))
            }
            Self::Serve { is_lost } => {
                let decision = if *is_lost { Decision::Lost } else { Decision::Serve };
                SourceMessage::Resolve { migration: migration(0), decision }
            }
            Self::Withdraw => SourceMessage::Withdraw(Complaint::new(Reason::Downtime, "late")),
            Self::Continue { other } => SourceMessage::Continue { migration: migration(*other) },
        }
    }
}

/// The expected migration id, for most values of `other`.
fn migration(other: u8) -> MigrationId {
    let mut id = MigrationId(Default::default());
    if other > 240 {
        id.0 = "00000000-0000-0000-0000-000000000001".parse().unwrap_or_default();
    }
    id
}

fn guest(name: &str, vcpus: u16) -> GuestDescription {
    let regions = vec![Region { base: 0, bytes: CHUNK_BYTES as u64 }];
    let layout = MemoryLayout::new(regions).unwrap_or_else(|error| panic!("no layout: {error}"));
    let (name, disks) = (name.to_owned(), Vec::new());
    GuestDescription {
        name,
        uuid: Default::default(),
        layout,
        vcpus,
        config: Blob::default(),
        disks,
        has_pci: false,
    }
}

/// The steps of an incoming guest that follow the protocol, from the greeting until it runs. The
/// connection is lost on the way.
fn by_the_rules() -> [Step; 20] {
    let answer = || Step::Answer { well: true };
    [
        Step::Hear(Words::Hello { other: 0, features: u64::MAX }),
        Step::Hear(Words::Node { port: 4950 }),
        Step::Hear(Words::Disks(vec![(0, 1 << 20, 4096, false)])),
        Step::Hear(Words::Prepare { name: None, vcpus: 1, streams: 1 }),
        answer(),
        answer(),
        answer(),
        Step::ConnectionLost,
        Step::Connected,
        Step::Hear(Words::Continue { other: 0 }),
        answer(),
        Step::Hear(Words::Switchover),
        Step::Hear(Words::State { paused: false, bytes: 1 }),
        Step::StreamEnded { stream: 0, announced: 1, applied: 1 },
        answer(),
        answer(),
        Step::Hear(Words::Commit),
        answer(),
        answer(),
        answer(),
    ]
}

/// As `by_the_rules`, for a guest whose memory follows it: until all of that is there.
fn by_the_rules_of_postcopy() -> [Step; 20] {
    let answer = || Step::Answer { well: true };
    let missing = |pages| Step::Hear(Words::Missing { chunk: 0, pages });
    [
        Step::Hear(Words::Hello { other: 0, features: u64::MAX }),
        Step::Hear(Words::Prepare { name: None, vcpus: 1, streams: 1 }),
        answer(),
        answer(),
        answer(),
        Step::StreamEnded { stream: 0, announced: 1, applied: 1 },
        missing(0b11),
        answer(),
        Step::Hear(Words::Switchover),
        missing(0b110),
        Step::Hear(Words::State { paused: false, bytes: 1 }),
        answer(),
        Step::Hear(Words::Commit),
        answer(),
        answer(),
        answer(),
        Step::ConnectionLost,
        Step::Connected,
        Step::Hear(Words::Serve { is_lost: false }),
        Step::Fetched,
    ]
}

/// The host of the destination, which carries out the destination's requests and checks that they
/// are allowed.
struct Host {
    destination: Destination,
    now: Duration,
    /// Requests that are still to be answered.
    asked: VecDeque<Asked>,
    taking_recorded: bool,
    /// The pages of the first list are dropped.
    is_cleared: bool,
    /// The destination fetches memory.
    fetches: bool,
    /// It has begun to.
    has_fetched: bool,
    /// The number of times that a guest ran whose memory was still missing.
    ran_early: u64,
    discarded: bool,
    finished: bool,
    settled: bool,
    resumed: u64,
}

#[derive(Debug)]
enum Asked {
    Check,
    Create,
    Count,
    Clear,
    Load,
    Record(DestinationState),
    Adopt,
    Resume,
}

/// How far an arrival got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    /// How often the destination wanted to run the guest.
    pub resumed: u64,
    /// How often a part of its memory was still to be fetched.
    pub early: u64,
}

/// Lets a guest arrive; returns how often the destination wanted to run it.
///
/// # Panics
/// If the destination requests what it must not, such as to run a guest that is not its own or that
/// is destroyed.
pub fn arrive(arrival: &Arrival) -> Ran {
    let config = DestinationConfig {
        migration: migration(0),
        offer: Offer { features: Features::SUPPORTED.with(FEATURE_POSTCOPY), ..Offer::ours() },
        linger: Duration::from_secs(30),
    };
    let mut host = Host {
        destination: Destination::new(config, Duration::ZERO),
        now: Duration::ZERO,
        asked: VecDeque::new(),
        taking_recorded: false,
        is_cleared: false,
        fetches: false,
        has_fetched: false,
        ran_early: 0,
        discarded: false,
        finished: false,
        settled: false,
        resumed: 0,
    };
    host.tell(Event::Connected);
    let lawful: &[Step] = match arrival.is_postcopy {
        true => &by_the_rules_of_postcopy(),
        false => &by_the_rules(),
    };
    let count = usize::from(arrival.lawful) % (lawful.len() + 1);
    let steps = lawful.iter().take(count).chain(&arrival.steps);
    for step in steps {
        if host.settled {
            break;
        }
        host.take(step);
    }
    Ran { resumed: host.resumed, early: host.ran_early }
}

impl Host {
    fn take(&mut self, step: &Step) {
        let event = match step {
            Step::Hear(words) => Event::Message(words.message()),
            Step::Answer { well } => match self.answer(*well) {
                Some(event) => event,
                None => return,
            },
            Step::StreamEnded { stream, announced, applied } => Event::StreamEnded {
                stream: u16::from(stream % 3),
                announced: u64::from(announced % 2),
                applied: u64::from(applied % 2),
            },
            Step::DataFailed => Event::DataFailed { detail: "no frame".into() },
            Step::Connected => Event::Connected,
            Step::ConnectionLost => Event::ConnectionLost { detail: "gone".into() },
            Step::Cancel => Event::Cancel { by: "somebody".into() },
            Step::Operator { run: true } => Event::Resolve(OperatorChoice::Run),
            Step::Operator { run: false } => Event::Resolve(OperatorChoice::Discard),
            Step::Wait { ms } => {
                self.now += Duration::from_millis((*ms).into());
                match self.destination.deadline() {
                    Some(deadline) if deadline <= self.now => Event::Tick,
                    _ => return,
                }
            }
            Step::Fetched if std::mem::take(&mut self.fetches) => Event::Fetched,
            Step::Fetched => return,
        };
        self.tell(event);
    }

    fn answer(&mut self, well: bool) -> Option<Event> {
        let refusal = || Refusal::new(RefusalKind::Guest, "no");
        let done = |well: bool| if well { Ok(()) } else { Err(GuestError::new("no")) };
        Some(match self.asked.pop_front()? {
            Asked::Check => Event::Checked(if well { Ok(()) } else { Err(refusal()) }),
            Asked::Create => Event::Created(if well { Ok(()) } else { Err(refusal()) }),
            Asked::Count => Event::Counted(vec![u64::from(well)]),
            Asked::Clear => {
                self.is_cleared |= well;
                Event::Cleared(done(well))
            }
            Asked::Load => Event::Loaded(done(well)),
            Asked::Adopt => Event::Adopted(done(well)),
            Asked::Resume => Event::Resumed(done(well)),
            Asked::Record(state) if well => {
                self.taking_recorded |= state == DestinationState::Taking;
                Event::Recorded
            }
            Asked::Record(_) => Event::RecordFailed { detail: "full".into() },
        })
    }

    fn tell(&mut self, event: Event) {
        for action in self.destination.handle(event, self.now) {
            assert!(!self.settled, "{action:?} after the end");
            self.look_at(action);
        }
    }

    fn check_owned(&self) {
        assert!(self.taking_recorded, "a guest runs that no record says is ours");
        assert!(!self.discarded, "a guest runs that is destroyed");
    }

    fn look_at(&mut self, action: Action) {
        match action {
            Action::Check(guest) | Action::Create(guest) if guest.check_bounds().is_err() => {
                panic!("{guest:?} is to be built")
            }
            Action::Check(_) => self.asked.push_back(Asked::Check),
            Action::Create(_) => self.asked.push_back(Asked::Create),
            Action::CountFrames => self.asked.push_back(Asked::Count),
            Action::Clear(_) => {
                assert!(!self.is_cleared, "pages are dropped twice for the first list");
                self.asked.push_back(Asked::Clear);
            }
            Action::Fetch(_) => {
                assert!(self.is_cleared, "memory is fetched of which nothing was dropped");
                assert!(!self.has_fetched, "memory is fetched twice");
                (self.fetches, self.has_fetched) = (true, true);
            }
            Action::ReportMissing => {
                assert!(self.has_fetched, "the source is told what is missing, and nothing is");
            }
            Action::StopFetching => self.fetches = false,
            Action::LoadState(_) => self.asked.push_back(Asked::Load),
            Action::Record(state) => {
                let is_one = !self.asked.iter().any(|asked| matches!(asked, Asked::Record(_)));
                assert!(
                    is_one,
                    "{state:?} is to be recorded before the answer for {:?}",
                    self.asked
                );
                self.asked.push_back(Asked::Record(state));
            }
            Action::AdoptGuest => {
                self.check_owned();
                self.asked.push_back(Asked::Adopt);
            }
            Action::ResumeGuest => {
                self.check_owned();
                self.resumed += 1;
                self.ran_early += u64::from(self.fetches);
                self.asked.push_back(Asked::Resume);
            }
            Action::Discard => {
                self.fetches = false;
                assert!(!self.discarded, "a guest is destroyed twice");
                self.discarded = true;
            }
            Action::Finished(_) => {
                assert!(!self.finished, "a migration ends twice");
                self.finished = true;
            }
            Action::Settled => self.settled = true,
            Action::Send(_)
            | Action::AcceptPages { .. }
            | Action::AbandonMissing
            | Action::Disconnect => {}
        }
    }
}
