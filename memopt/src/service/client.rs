//! What others ask of the service.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Clock;
use super::core::Core;
use super::error::ServiceError;
use super::handle::{Handle, Message};
use super::surveys::Wanted;
use super::types::{Agenda, DensityStatus, Kept, RunEnd};
use super::view::nobody;
use crate::history::{Listing, Run, RunId};
use crate::plan::Plan;
use crate::policy::{Goal, Policy};
use crate::schedule::{Schedule, Tally};

/// How long the loop may take to hear a question: it inspects guests that take a second each, and
/// not more than one of each kind.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a run may take to end with the service, and between two questions whether it has.
const SHUT_DOWN_PATIENCE: Duration = Duration::from_secs(3);
const SHUT_DOWN_PAUSE: Duration = Duration::from_millis(20);

/// What is published: for whoever cannot wait.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Published {
    /// The schedules, in the order of their file, with what has become of them.
    pub schedules: Vec<(Schedule, Tally)>,
    /// Whether a run is under way.
    pub is_running: bool,
    /// Whether `lighter.toml` as it is now does not hold.
    pub are_settings_wrong: bool,
}

/// Asks the service.
#[derive(Debug, Clone)]
pub struct Client {
    send: mpsc::Sender<Message>,
    published: watch::Receiver<Published>,
    clock: Arc<dyn Clock>,
}

/// Who is told what comes of a question.
type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

impl Client {
    pub(super) const fn new(
        send: mpsc::Sender<Message>,
        published: watch::Receiver<Published>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { send, published, clock }
    }

    /// The service's time.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// What was published last.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published.borrow().clone()
    }

    /// How the host and its guests stand.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`], [`ServiceError::Silent`].
    pub async fn status(&self) -> Result<DensityStatus, ServiceError> {
        self.ask(|core, reply| core.answer(reply, status)).await
    }

    /// What would be done now: for `goal`, or that of the policy; with `policy`, or that of
    /// `lighter.toml`. With `survey`, guests' pages are surveyed first where that was not done
    /// lately, for as long as a window of ksmd at most.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`], [`ServiceError::Settings`], [`ServiceError::Silent`].
    pub async fn plan(
        &self,
        goal: Option<Goal>,
        policy: Option<Policy>,
        survey: bool,
    ) -> Result<Plan, ServiceError> {
        let begin = move |core: &mut Core<'_>, reply: Reply<Plan>| match policy
            .map_or_else(|| core.policy_of_runs(), Ok)
        {
            Ok(policy) => core.answer(reply, move |handle| plan(handle, goal, policy, survey)),
            Err(error) => refuse(reply, error),
        };
        self.ask_patiently(begin).await
    }

    /// Begins a run: for `goal`, or that of the policy; nothing is done that is not in `only`.
    ///
    /// # Errors
    /// [`ServiceError::Busy`], [`ServiceError::Inspect`], [`ServiceError::Settings`],
    /// [`ServiceError::Silent`].
    pub async fn begin(
        &self,
        goal: Option<Goal>,
        only: Option<Plan>,
    ) -> Result<RunId, ServiceError> {
        self.ask_patiently(move |core, reply| core.begin_now(goal, only, reply)).await
    }

    /// Calls a run off; it ends after the step under way.
    ///
    /// # Errors
    /// [`ServiceError::NotUnderWay`], [`ServiceError::Silent`].
    pub async fn cancel(&self, id: RunId) -> Result<(), ServiceError> {
        self.call(move |core| core.cancel(id)).await?
    }

    /// The last runs, the newest first.
    ///
    /// # Errors
    /// [`ServiceError::NoHistory`], [`ServiceError::Silent`].
    pub async fn runs(&self, count: usize) -> Result<Listing<RunEnd>, ServiceError> {
        self.call(move |core| core.records.runs(count)).await?
    }

    /// A run.
    ///
    /// # Errors
    /// [`ServiceError::NoSuchRun`], [`ServiceError::NoHistory`], [`ServiceError::Silent`].
    pub async fn run(&self, id: RunId) -> Result<Run<Kept>, ServiceError> {
        self.call(move |core| core.records.run(id)).await?
    }

    /// What runs, and the first `count` runs that are due then.
    ///
    /// # Errors
    /// [`ServiceError::Silent`].
    pub async fn agenda(&self, count: usize) -> Result<Agenda, ServiceError> {
        self.call(move |core| core.agenda(count)).await
    }

    /// Calls the run under way off, puts ksmd's settings back, and ends the service. What balloons
    /// hold stays.
    pub async fn shut_down(&self) {
        let is_over = async {
            while !self.call(|core| core.wind_up()).await.unwrap_or(true) {
                tokio::time::sleep(SHUT_DOWN_PAUSE).await;
            }
        };
        if timeout(SHUT_DOWN_PATIENCE, is_over).await.is_err() {
            tracing::warn!("a run is cut short");
        }
        let end = self.call(|core| core.is_over = true);
        // It may have broken down.
        let _gone = timeout(SHUT_DOWN_PAUSE, end).await;
    }

    /// Does `body` with what is known; returns what comes of it.
    async fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Core<'_>) -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        self.ask(|core, reply| {
            // Who has asked may be gone.
            let _unwanted = reply.send(Ok(body(core)));
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        begin: impl FnOnce(&mut Core<'_>, Reply<T>) + Send + 'static,
    ) -> Result<T, ServiceError> {
        let asked = timeout(PATIENCE, self.ask_patiently(begin)).await;
        asked.unwrap_or(Err(ServiceError::Silent))
    }

    /// As [`Self::ask`], for what takes its time.
    async fn ask_patiently<T: Send + 'static>(
        &self,
        begin: impl FnOnce(&mut Core<'_>, Reply<T>) + Send + 'static,
    ) -> Result<T, ServiceError> {
        let (reply, told) = oneshot::channel();
        let begin = Message::Call(Box::new(move |core| begin(core, reply)));
        self.send.send(begin).await.map_err(|_| ServiceError::Silent)?;
        told.await.unwrap_or(Err(ServiceError::Silent))
    }
}

fn refuse<T>(reply: Reply<T>, error: ServiceError) {
    // Who has asked may be gone.
    let _unwanted = reply.send(Err(error));
}

impl Core<'_> {
    /// Has a task find the answer, unless nobody waits for it any more.
    fn answer<T, F>(&mut self, mut reply: Reply<T>, find: impl FnOnce(Handle) -> F)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let found = find(self.handle.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                found = found => {
                    // Who has asked may be gone.
                    let _unwanted = reply.send(found);
                }
                () = reply.closed() => {}
            }
        });
    }
}

async fn status(handle: Handle) -> Result<DensityStatus, ServiceError> {
    let policy = handle.call(|core| core.settings.settings.policy.clone()).await;
    let mut view = handle.inspect(&policy, nobody()).await?;
    // Thousands for each guest, which nobody reads.
    let surveys = view.situation.guests.iter_mut().filter_map(|it| it.survey.as_mut());
    surveys.for_each(|survey| survey.chunks.clear());
    view.situation.host.strangers = handle.shared.strangers.last(&view.situation);
    let tell = move |core: &mut Core<'_>| DensityStatus {
        remembered: core.remembered(&view.situation),
        situation: view.situation,
        level: core.ledger.level,
        goal: policy.goal,
        file: core.settings.path().map(|path| path.display().to_string()),
        file_error: core.settings.error.clone(),
        missing: view.missing,
        running: core.running().map(|(id, _)| *id),
    };
    Ok(handle.call(tell).await)
}

async fn plan(
    handle: Handle,
    goal: Option<Goal>,
    policy: Policy,
    survey: bool,
) -> Result<Plan, ServiceError> {
    let goal = goal.unwrap_or(policy.goal);
    if survey {
        // Whose pages are not surveyed in time is told in the plan.
        let surveyed = handle.survey(&policy, Wanted::All);
        if let Ok(surveyed) = timeout(policy.merge.window, surveyed).await {
            surveyed?;
        }
    }
    handle.think(&policy, &goal).await
}
