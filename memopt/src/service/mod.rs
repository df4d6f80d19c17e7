//! The shell of memory optimization: one loop that inspects the host, begins runs that are due,
//! gives guests in pain their memory back, and answers clients.
//!
//! The loop ([`run`](fn@run)) owns the state: settings, ledger, surveys, history, scheduler
//! (`core`). It holds no lock: it takes messages one at a time (`handle`). What takes long is a
//! task of its own, which tells the loop what came of it: a run (`runner`), a survey
//! (`surveys`), a step (`steps`), an answer to a client (`client`). The world is behind
//! ports: guests behind [`Hypervisor`], the host behind [`Host`] (`machine` is the real one),
//! time behind [`Clock`]; what happens is told to an [`Observer`].
//!
//! [`start`] runs the loop in a thread of its own. When it panics it is restarted, with ksmd as
//! it was before; migrations, which other threads carry, do not notice.

mod client;
mod core;
mod error;
mod events;
mod handle;
mod machine;
mod records;
mod runner;
mod settings;
mod steps;
mod strangers;
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

pub use self::client::{Client, Pages, Published};
use self::core::Core;
pub use self::error::ServiceError;
pub use self::events::{Event, Observer};
use self::handle::{Handle, Inbox, Shared};
pub use self::machine::Machine;
pub use self::settings::Settings;
use self::strangers::Strangers;
pub use self::types::{Agenda, DensityStatus, NextRun, Remembered, Spared};
pub use self::view::{Costs, Host, Observed};
use crate::hypervisor::Hypervisor;
use crate::observe::Sources;
use crate::schedule::Moment;

/// Messages that wait for the loop.
const INBOX: usize = 64;

/// Before a restart; twice as long after each panic that follows soon, up to the second time.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A panic after this long has nothing to do with the last one.
const STEADY: Duration = Duration::from_secs(600);

/// What time it is.
pub trait Clock: Debug + Send + Sync {
    /// Now: the host's clock, and its uptime, which cannot be set.
    fn now(&self) -> Moment;
}

/// Where things are kept.
#[derive(Debug, Clone)]
pub struct Files {
    /// `lighter.toml`: policy and schedules.
    pub settings: PathBuf,
    /// The ledger: balloons and merging.
    pub ledger: PathBuf,
    /// The history of runs.
    pub history: PathBuf,
}

/// What the service works with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What runs guests here; a guest's name is that of the first one that has it.
    pub hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Where the files are that processes are inspected by.
    pub sources: Sources,
    /// Its own files.
    pub files: Files,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
}

/// Starts the service in a thread of its own.
///
/// # Errors
/// The system gives no thread, or no runtime for it.
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

/// A client, and what [`run`](fn@run) takes its questions from.
#[must_use]
pub fn client() -> (Client, Inbox) {
    let (send, messages) = mpsc::channel(INBOX);
    let (publish, published) = watched::channel(Published::default());
    (Client::new(send, published), Inbox { messages, publish })
}

/// Watches over this host until its client has shut it down, or is gone.
pub async fn run(host: &mut dyn Host, setup: &Setup, inbox: &mut Inbox) {
    if let Err(error) = host.recover() {
        tracing::warn!("ksmd cannot be put back to how it was set: {error}");
    }
    let shared = Shared {
        hypervisors: setup.hypervisors.clone(),
        strangers: Strangers::new(setup.sources.clone()),
        surveying: tokio::sync::Mutex::default(),
        clock: Arc::clone(&setup.clock),
        observer: Arc::clone(&setup.observer),
    };
    // What tasks of an earlier loop have sent is not done by this one.
    let (send, mut told) = mpsc::channel(INBOX);
    let handle = Handle { send, shared: Arc::new(shared) };
    Core::open(host, setup, handle, inbox.publish.clone()).serve(inbox, &mut told).await;
}
