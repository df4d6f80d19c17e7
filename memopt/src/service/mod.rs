//! The shell of memory optimization: one loop that inspects the host, starts runs that are due,
//! gives guests under pressure their memory back, and answers clients.
//!
//! The loop ([`run`](fn@run)) owns the state: settings, ledger, surveys, history, scheduler
//! (`core`). It holds no lock, because it takes messages one at a time (`serve`). Whatever takes
//! long is a separate task that reports its result to the loop: a run (`runner`, started by
//! `dispatch`), a survey (`surveyor`), a step (`steps`), an answer to a client (`client`). The
//! outside world is behind ports: guests behind [`Hypervisor`], the host behind [`Host`] (`machine`
//! is the real one), time behind [`Clock`]. An [`Observer`] receives the events.
//!
//! [`start`] runs the loop in its own thread. After a panic the loop is restarted and ksmd's
//! settings are restored. Migrations run in other threads and are not affected.

mod client;
mod core;
mod dispatch;
mod error;
mod events;
mod machine;
mod other_processes;
mod records;
mod runner;
mod serve;
mod settings;
mod steps;
mod surveyor;
mod surveys;
mod types;
mod view;
mod watch;

use std::fmt::Debug;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch as watched};

pub use self::client::{Client, Pages};
pub use self::core::Published;
use self::core::{Core, Handle, Inbox, Shared};
pub use self::error::ServiceError;
pub use self::events::{Event, Observer};
pub use self::machine::Machine;
use self::other_processes::OtherProcesses;
pub use self::settings::Settings;
pub use self::types::{Agenda, DensityStatus, NextRun, Remembered, Spared};
pub use self::view::{Costs, Host, Observed};
use crate::hypervisor::Hypervisor;
use crate::observe::Sources;
use crate::schedule::Moment;

/// Maximum number of messages that wait for the loop.
const INBOX: usize = 64;

/// Pause before a restart; doubled, up to the maximum, after each panic that soon follows another.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A panic after this long is considered unrelated to the previous one.
const STEADY: Duration = Duration::from_secs(600);

/// The clocks of the host.
pub trait Clock: Debug + Send + Sync {
    /// Returns the present time: the wall clock, and the uptime, which cannot be set.
    fn now(&self) -> Moment;
}

/// Paths of the service's files.
#[derive(Debug, Clone)]
pub struct Files {
    /// `lighter.toml`: policy and schedules.
    pub settings: PathBuf,
    /// The ledger: state of balloons and merging.
    pub ledger: PathBuf,
    /// The history of runs.
    pub history: PathBuf,
}

/// Everything that the service depends on.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The hypervisors of this host. If several have a guest of the same name, the first one keeps
    /// the name.
    pub hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Locations of the files through which processes are inspected.
    pub sources: Sources,
    /// The service's own files.
    pub files: Files,
    /// Tells the wall-clock time and the uptime.
    pub clock: Arc<dyn Clock>,
    /// Receives the events of the service.
    pub observer: Arc<dyn Observer>,
}

/// Starts the service in its own thread.
///
/// # Errors
/// If the thread or its runtime cannot be created.
pub fn start(setup: Setup, mut host: Box<dyn Host>) -> io::Result<Client> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (client, mut inbox) = client();
    let work = move || {
        let mut pause = RESTART_PAUSE;
        loop {
            let begun = Instant::now();
            let serve = run(&mut *host, &setup, &mut inbox);
            if catch_unwind(AssertUnwindSafe(|| runtime.block_on(serve))).is_ok() {
                return;
            }
            tracing::error!("memory optimization has panicked, and is restarted");
            setup.observer.notice(&Event::Restarted);
            if begun.elapsed() >= STEADY {
                pause = RESTART_PAUSE;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
        }
    };
    std::thread::Builder::new().name("density".to_owned()).spawn(work)?;
    Ok(client)
}

/// Returns a client, and the inbox from which [`run`](fn@run) takes its requests.
#[must_use]
pub fn client() -> (Client, Inbox) {
    let (send, messages) = mpsc::channel(INBOX);
    let (publish, published) = watched::channel(Published::default());
    (Client::new(send, published), Inbox { messages, publish })
}

/// Runs the service until its client shuts it down or is dropped.
pub async fn run(host: &mut dyn Host, setup: &Setup, inbox: &mut Inbox) {
    if let Err(error) = host.recover() {
        tracing::warn!("ksmd cannot be put back to how it was set: {error}");
    }
    let shared = Shared {
        hypervisors: setup.hypervisors.clone(),
        other_processes: OtherProcesses::new(setup.sources.clone()),
        surveying: tokio::sync::Mutex::default(),
        clock: Arc::clone(&setup.clock),
        observer: Arc::clone(&setup.observer),
    };
    // A new channel, so that messages from tasks of an earlier loop are not executed by this one.
    let (send, mut message_receiver) = mpsc::channel(INBOX);
    let handle = Handle { send, shared: Arc::new(shared) };
    Core::open(host, setup, handle, inbox.publish.clone())
        .serve(inbox, &mut message_receiver)
        .await;
}
