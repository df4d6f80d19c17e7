//! The real service on a simulated host, with guests of a simulated hypervisor, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use memopt::history::RunEnd;
use memopt::hypervisor::{Answer, GuestRef, Hypervisor, Inspected, SurveyRequest, Surveyed, Which};
use memopt::ksm::{Budget, KsmError, Outcome};
use memopt::observe::{ObserveError, Sources};
use memopt::policy::Goal;
use memopt::schedule::{Moment, Trigger};
use memopt::service::{
    self, Client, Clock, Costs, Event, Files, Host, Observed, Observer, ServiceError, Setup,
};
use memopt::situation::{Guest, Hindrance};
use memopt::step::Action;
use memopt::units::{GIB, MIB};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

use crate::host::{SimGuest, host};

/// The simulated guests, and the failures that are injected.
struct World {
    total: u64,
    guests: Mutex<Vec<SimGuest>>,
    begun: Instant,
    /// Guests whose steps never return.
    hang: Mutex<BTreeSet<String>>,
    /// How many inspections each of these guests will not answer.
    deaf: Mutex<BTreeMap<String, usize>>,
    /// How often guests were inspected by name.
    closely: AtomicUsize,
    /// Inspecting guests panics, once.
    breaks: AtomicBool,
    /// A step panics, once.
    step_breaks: AtomicBool,
    /// The ledger file, which must record a balloon before it is inflated.
    ledger: std::path::PathBuf,
    /// Balloons that were inflated before they were recorded.
    untold: AtomicUsize,
}

impl World {
    fn guests(&self) -> MutexGuard<'_, Vec<SimGuest>> {
        self.guests.lock().expect("guests")
    }

    fn second(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    fn actual(&self, name: &str) -> u64 {
        self.guests().iter().find(|guest| guest.name == name).expect("a guest").actual
    }

    /// What the service learns of `guest`: only its name if it does not answer.
    fn heard(&self, guest: Guest) -> Guest {
        match self.deaf.lock().expect("names").get_mut(&guest.name) {
            Some(left) if *left > 0 => {
                *left -= 1;
                let silent = Some(Hindrance::Unreachable);
                Guest { hindrance: silent, ..Guest::unknown(guest.name, guest.vmm, guest.pid) }
            }
            _ => guest,
        }
    }

    fn is_put_down(&self, guest: &str, to_bytes: u64) -> bool {
        let text = std::fs::read_to_string(&self.ledger).unwrap_or_default();
        let ledger: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        ledger["guests"][guest].to_string().contains(&to_bytes.to_string())
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl Hypervisor for World {
    fn inspect<'a>(&'a self, which: Which<'a>) -> Answer<'a, Inspected> {
        Box::pin(async move {
            assert!(!self.breaks.swap(false, Ordering::Relaxed), "as it was ordered");
            let all: Vec<Guest> =
                self.guests().iter().map(|guest| guest.sample(self.second())).collect();
            let names = all.iter().map(|guest| guest.name.clone()).collect();
            let is_asked =
                |guest: &Guest| which.names.is_none_or(|names| names.contains(&guest.name));
            self.closely.fetch_add(which.names.is_some().into(), Ordering::Relaxed);
            let guests = all.into_iter().filter(is_asked).map(|guest| self.heard(guest)).collect();
            Ok(Inspected { guests, names, missing: Vec::new() })
        })
    }

    fn has(&self, guest: &GuestRef) -> bool {
        self.guests().iter().any(|it| it.name == guest.name)
    }

    fn act<'a>(&'a self, guest: &'a GuestRef, action: &'a Action) -> Answer<'a, ()> {
        Box::pin(async move {
            let Action::SetBalloon { from_bytes, to_bytes, .. } = action else {
                return Err("it has a balloon, and nothing else".into());
            };
            if to_bytes < from_bytes && !self.is_put_down(&guest.name, *to_bytes) {
                self.untold.fetch_add(1, Ordering::Relaxed);
            }
            assert!(!self.step_breaks.swap(false, Ordering::Relaxed), "as it was ordered");
            if self.hang.lock().expect("names").contains(&guest.name) {
                std::future::pending::<()>().await;
            }
            let mut guests = self.guests();
            let it = guests.iter_mut().find(|it| it.name == guest.name);
            it.ok_or("it is gone")?.target = *to_bytes;
            Ok(())
        })
    }

    fn survey<'a>(&'a self, _: &'a Guest, _: SurveyRequest) -> Answer<'a, Surveyed> {
        Box::pin(async { Err("its pages are not there".into()) })
    }
}

/// The host of a world, without ksmd and pools.
#[derive(Debug)]
struct WorldsHost(Arc<World>);

impl Host for WorldsHost {
    fn observe(
        &mut self,
        _: &mut [Guest],
        _: &Costs<'_>,
        _: Duration,
    ) -> Result<Observed, ObserveError> {
        let host = host(self.0.total, &self.0.guests());
        Ok(Observed { host, missing: Vec::new() })
    }

    fn recover(&mut self) -> Result<(), KsmError> {
        Ok(())
    }

    fn drive_ksm(&mut self, _: Budget) -> Result<(), memopt::hypervisor::Failure> {
        Err("there is no ksmd".into())
    }

    fn drives_ksm(&self) -> bool {
        false
    }

    fn take_outcome(&mut self) -> Option<Outcome> {
        None
    }

    fn end_window(&mut self) {}

    fn resize_pool(&mut self, _: u64, _: u64) -> Result<(), memopt::hypervisor::Failure> {
        Err("there are no pools".into())
    }
}

/// Tokio's clock, which tests advance.
#[derive(Debug)]
struct Virtual(Instant);

impl Clock for Virtual {
    fn now(&self) -> Moment {
        let passed = self.0.elapsed();
        let wall = Duration::from_secs(1_800_000_000) + passed;
        Moment { wall, uptime: Duration::from_secs(1000) + passed }
    }
}

/// The events so far, as text.
#[derive(Debug, Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn count(&self, word: &str) -> usize {
        let heard = self.0.lock().expect("words");
        heard.iter().filter(|it| it.starts_with(word)).count()
    }
}

impl Observer for Heard {
    fn notice(&self, event: &Event<'_>) {
        let word = match event {
            Event::Inspected { .. } => "Inspected".to_owned(),
            other => format!("{other:?}"),
        };
        self.0.lock().expect("words").push(word);
    }
}

/// A service and its simulated world.
struct Bench {
    world: Arc<World>,
    heard: Arc<Heard>,
    setup: Setup,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(total: u64, guests: Vec<SimGuest>, toml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("lighter.toml"), toml).expect("settings");
        let ledger = file("ledger");
        let world = World {
            total,
            guests: Mutex::new(guests),
            begun: Instant::now(),
            hang: Mutex::default(),
            deaf: Mutex::default(),
            closely: AtomicUsize::default(),
            breaks: AtomicBool::new(false),
            step_breaks: AtomicBool::new(false),
            ledger: ledger.clone(),
            untold: AtomicUsize::new(0),
        };
        let (world, heard) = (Arc::new(world), Arc::new(Heard::default()));
        let files = Files { settings: file("lighter.toml"), ledger, history: file("history") };
        let setup = Setup {
            hypervisors: vec![Arc::<World>::clone(&world)],
            sources: Sources::at(folder.path()),
            files,
            clock: Arc::new(Virtual(world.begun)),
            observer: Arc::<Heard>::clone(&heard),
        };
        Self { world, heard, setup, _folder: folder }
    }

    fn ledger(&self) -> &Path {
        &self.setup.files.ledger
    }

    /// Runs the service and the simulated guests for as long as `test` takes.
    async fn run(&self, test: impl AsyncFnOnce(Client)) {
        let (client, mut inbox) = service::client();
        let (setup, mut host) = (self.setup.clone(), WorldsHost(Arc::clone(&self.world)));
        let local = LocalSet::new();
        local.spawn_local(async move { service::run(&mut host, &setup, &mut inbox).await });
        let world = Arc::clone(&self.world);
        local.spawn_local(async move {
            loop {
                sleep(Duration::from_secs(10)).await;
                let second = world.second();
                world.guests().iter_mut().for_each(|guest| guest.live(second));
            }
        });
        local.run_until(test(client)).await;
    }

    /// Starts a run and returns how it ended.
    async fn run_for(&self, client: &Client, goal: Goal) -> RunEnd {
        let id = client.begin(Some(goal), None).await.expect("a run");
        for _ in 0..7200 {
            sleep(Duration::from_secs(1)).await;
            if let Some(end) = client.run(id).await.expect("a run").summary.outcome {
                return end;
            }
        }
        panic!("the run does not end");
    }
}

/// Guests that use 1 GiB of 8.
fn idle(names: &[&str]) -> Vec<SimGuest> {
    names.iter().map(|name| SimGuest::new(name, 8 * GIB, |_| GIB)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_run_takes_unneeded_memory_and_reports_what_was_returned() {
    let bench = Bench::new(64 * GIB, idle(&["a", "b"]), "");
    let test = async |client: Client| {
        let end = bench.run_for(&client, Goal::MaxDensity).await;
        assert!(end.is_success(), "{end}");
        for name in ["a", "b"] {
            assert!(bench.world.actual(name) < 3 * GIB, "{}", bench.world.actual(name) / MIB);
        }
        let runs = client.runs(10).await.expect("a history").runs;
        assert_eq!(runs.len(), 1);
        assert!(runs[0].verified_bytes > 0, "{:?}", runs[0]);
        assert_eq!(bench.world.untold.load(Ordering::Relaxed), 0, "done before it was put down");
        assert!(!client.published().is_running);
    };
    bench.run(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_under_pressure_gets_its_memory_back_while_another_process_hangs() {
    let jump = |second: u64| if second < 3600 { GIB } else { 6 * GIB };
    let guests = ["a", "b"].map(|name| SimGuest::new(name, 8 * GIB, jump)).into();
    let bench = Bench::new(64 * GIB, guests, "");
    let test = async |client: Client| {
        bench.run_for(&client, Goal::MaxDensity).await;
        assert!(bench.world.actual("a") < 3 * GIB && bench.world.actual("b") < 3 * GIB);
        bench.world.hang.lock().expect("names").insert("a".to_owned());
        while bench.world.second() < 3600 {
            sleep(Duration::from_secs(1)).await;
        }
        // The pressure shows in the next simulated round, and the step takes effect in the one
        // after it.
        sleep(Duration::from_secs(21)).await;
        assert_eq!(bench.world.actual("b"), 8 * GIB);
        assert!(bench.world.actual("a") < 3 * GIB, "its process hangs");
        assert_eq!(bench.heard.count("Relieved"), 1);
        let newest = &client.runs(10).await.expect("a history").runs[0];
        assert_eq!(newest.trigger, Trigger::Relief);
        let relief = client.run(newest.id).await.expect("a record");
        let [step] = &relief.steps[..] else { panic!("{relief:?}") };
        assert_eq!(step.action.action.guest(), Some("b"));
        assert!(step.action.reason.contains("memory pressure"), "{}", step.action.reason);
        client.status().await.expect("an answer");
    };
    bench.run(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_misses_one_inspection_is_watched_as_closely_as_before() {
    let bench = Bench::new(64 * GIB, idle(&["a"]), "");
    let test = async |client: Client| {
        bench.run_for(&client, Goal::MaxDensity).await;
        let watched = async |misses| {
            bench.world.deaf.lock().expect("names").insert("a".to_owned(), misses);
            let before = bench.world.closely.load(Ordering::Relaxed);
            sleep(Duration::from_secs(5)).await;
            bench.world.closely.load(Ordering::Relaxed) - before
        };
        let answering = watched(0).await;
        assert!(answering >= 11, "{answering} in 5 s");
        let missing_one = watched(1).await;
        assert!(missing_one + 1 >= answering, "{missing_one} in 5 s");
        let silent = watched(100).await;
        assert!(silent < 5, "{silent} in 5 s: it would hold up the others");
    };
    bench.run(test).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_that_cannot_be_recorded() {
    let bench = Bench::new(64 * GIB, idle(&["a"]), "");
    std::fs::create_dir(bench.ledger()).expect("a folder in its place");
    let test = async |client: Client| {
        assert_eq!(bench.run_for(&client, Goal::MaxDensity).await, RunEnd::Failed);
        assert_eq!(bench.world.actual("a"), 8 * GIB);
    };
    bench.run(test).await;
}

#[tokio::test(start_paused = true)]
async fn schedules_run_one_by_one_and_a_manual_run_meanwhile_is_refused() {
    const SCHEDULES: &str = "[[schedule]]\nname = \"first\"\ncron = \"0 * * * *\"\ngoal = \"max density\"\n\
        [[schedule]]\nname = \"second\"\ncron = \"0 * * * *\"\ngoal = \"max density\"\noverlap = \"queue\"\n";
    let bench = Bench::new(64 * GIB, idle(&["a", "b"]), SCHEDULES);
    let test = async |client: Client| {
        while !client.published().is_running {
            sleep(Duration::from_secs(1)).await;
        }
        let refused = client.begin(None, None).await.expect_err("one at a time");
        assert!(matches!(refused, ServiceError::Busy { .. }), "{refused}");
        while bench.heard.count("RunEnded") < 2 {
            sleep(Duration::from_secs(1)).await;
        }
        let runs = client.runs(10).await.expect("a history").runs;
        let mut names: Vec<String> = runs.iter().map(|run| run.trigger.to_string()).collect();
        names.reverse();
        assert_eq!(names[..2], ["first", "second"]);
    };
    bench.run(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_ends_and_so_does_the_service_on_shutdown() {
    let bench = Bench::new(64 * GIB, idle(&["a"]), "");
    let test = async |client: Client| {
        let id = client.begin(Some(Goal::MaxDensity), None).await.expect("a run");
        client.cancel(id).await.expect("it is under way");
        while client.run(id).await.expect("a run").summary.outcome.is_none() {
            sleep(Duration::from_secs(1)).await;
        }
        assert!(matches!(client.cancel(id).await, Err(ServiceError::NotUnderWay(_))));
        let _second = client.begin(Some(Goal::MaxDensity), None).await.expect("a run");
        client.shut_down().await;
        assert!(!client.published().is_running);
        assert!(matches!(client.agenda(1).await, Err(ServiceError::Silent)));
    };
    bench.run(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_panics_has_failed_and_the_next_one_begins() {
    let bench = Bench::new(64 * GIB, idle(&["a"]), "");
    let test = async |client: Client| {
        bench.world.step_breaks.store(true, Ordering::Relaxed);
        assert_eq!(bench.run_for(&client, Goal::MaxDensity).await, RunEnd::Failed);
        assert_eq!((bench.heard.count("RunEnded"), bench.heard.count("Restarted")), (1, 0));
        assert!(bench.run_for(&client, Goal::MaxDensity).await.is_success());
    };
    bench.run(test).await;
}

/// Runs the service in its own thread, in real time.
#[tokio::test]
async fn a_service_that_panics_is_restarted() {
    let bench = Bench::new(64 * GIB, idle(&["a"]), "");
    let host = Box::new(WorldsHost(Arc::clone(&bench.world)));
    let client = service::start(bench.setup.clone(), host).expect("a thread");
    client.status().await.expect("an answer");
    bench.world.breaks.store(true, Ordering::Relaxed);
    // Either the tick's inspection panics, or the one for this client, which then gets no answer.
    if let Err(error) = client.status().await {
        assert!(matches!(error, ServiceError::Silent), "{error}");
    }
    while bench.heard.count("Restarted") == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let status = client.status().await.expect("an answer of the new one");
    assert_eq!(status.situation.guests.len(), 1);
    client.runs(1).await.expect("the history is open again");
    assert_eq!(bench.heard.count("Restarted"), 1);
    client.shut_down().await;
}
