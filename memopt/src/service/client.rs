//! What others ask of the service.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::core::Core;
use super::error::ServiceError;
use super::handle::{Handle, Message, Reply, refuse};
use super::surveys::Wanted;
use super::types::{Agenda, DensityStatus};
use super::view::none;
use crate::history::{Listing, Run, RunId};
use crate::plan::Plan;
use crate::policy::{Goal, Policy};
use crate::schedule::{Schedule, Tally};

/// How long the loop may take to answer: it inspects guests that take a second each to be given up.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long it may take to open its files.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// At the end: how long putting ksmd back, the run's last step and the loop itself may take, and
/// between two questions whether the run is over.
const KSM_PATIENCE: Duration = Duration::from_secs(10);
const RUN_PATIENCE: Duration = Duration::from_secs(3);
const END_PATIENCE: Duration = Duration::from_secs(3);
const SHUT_DOWN_PAUSE: Duration = Duration::from_millis(20);

/// What the loop publishes: it is read without waiting for the loop.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Published {
    /// The schedules, in the order of their file, with what has become of them.
    pub schedules: Vec<(Schedule, Tally)>,
    /// Whether a run is under way.
    pub is_running: bool,
    /// Whether `lighter.toml` as it is now does not hold.
    pub are_settings_invalid: bool,
}

/// What a plan is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// The surveys that there are.
    AsKnown,
    /// They are surveyed first where that was not done lately, for as long as a window of ksmd at
    /// most.
    SurveyedFirst,
}

/// Asks the service.
#[derive(Debug, Clone)]
pub struct Client {
    send: mpsc::Sender<Message>,
    published: watch::Receiver<Published>,
}

impl Client {
    pub(super) const fn new(
        send: mpsc::Sender<Message>,
        published: watch::Receiver<Published>,
    ) -> Self {
        Self { send, published }
    }

    /// Waits until the service has read its files and serves.
    ///
    /// # Errors
    /// [`ServiceError::Silent`]: it does not within 10 s.
    pub async fn opened(&self) -> Result<(), ServiceError> {
        let mut published = self.published.clone();
        match timeout(OPEN_PATIENCE, published.changed()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ServiceError::Silent),
        }
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
    /// `lighter.toml`.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`], [`ServiceError::Settings`], [`ServiceError::Silent`].
    pub async fn plan(
        &self,
        goal: Option<Goal>,
        policy: Option<Policy>,
        pages: Pages,
    ) -> Result<Plan, ServiceError> {
        let begin = move |core: &mut Core<'_>, reply: Reply<Plan>| match policy
            .map_or_else(|| core.policy_of_runs(), Ok)
        {
            Ok(policy) => core.answer(reply, move |handle| plan(handle, goal, policy, pages)),
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

    /// Cancels a run; it ends after the step under way.
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
    pub async fn runs(&self, count: usize) -> Result<Listing, ServiceError> {
        self.call(move |core| core.records.runs(count)).await?
    }

    /// A run.
    ///
    /// # Errors
    /// [`ServiceError::NoSuchRun`], [`ServiceError::Unreadable`], [`ServiceError::NoHistory`],
    /// [`ServiceError::Silent`].
    pub async fn run(&self, id: RunId) -> Result<Run, ServiceError> {
        self.call(move |core| core.records.run(id)).await?
    }

    /// What runs, and the first `count` runs that are due then.
    ///
    /// # Errors
    /// [`ServiceError::Silent`].
    pub async fn agenda(&self, count: usize) -> Result<Agenda, ServiceError> {
        self.call(move |core| core.agenda(count)).await
    }

    /// Cancels the run under way, puts ksmd's settings back, and ends the service. What balloons
    /// hold stays.
    pub async fn shut_down(&self) {
        let wound_up = self.ask_patiently(|core, reply: Reply<bool>| {
            // Also when the client waits no longer.
            let _unwanted = reply.send(Ok(core.wind_up()));
        });
        if timeout(KSM_PATIENCE, wound_up).await.is_err() {
            tracing::warn!("ksmd may still be driven: the next node puts its settings back");
        }
        let is_over = async {
            while !self.call(|core| core.wind_up()).await.unwrap_or(true) {
                tokio::time::sleep(SHUT_DOWN_PAUSE).await;
            }
        };
        if timeout(RUN_PATIENCE, is_over).await.is_err() {
            tracing::warn!("a run is cut short");
        }
        let end = Message::Call(Box::new(|core| core.is_over = true));
        let ended = async {
            // It may have ended already.
            let _gone = self.send.send(end).await;
            self.send.closed().await;
        };
        if timeout(END_PATIENCE, ended).await.is_err() {
            tracing::warn!("memory optimization is cut short");
        }
    }

    /// Runs `body` on the service's state; returns its result.
    async fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Core<'_>) -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        self.ask(|core, reply| {
            if !reply.is_closed() {
                // Who has asked may be gone.
                let _unwanted = reply.send(Ok(body(core)));
            }
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

impl Core<'_> {
    /// Has a task find the answer. It stops when the client has stopped waiting.
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
    let mut view = handle.inspect(&policy, none()).await?;
    // Thousands for each guest, of no use to a reader.
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
        running: core.running().map(|run| run.id),
    };
    Ok(handle.call(tell).await)
}

async fn plan(
    handle: Handle,
    goal: Option<Goal>,
    policy: Policy,
    pages: Pages,
) -> Result<Plan, ServiceError> {
    let goal = goal.unwrap_or(policy.goal);
    if pages == Pages::SurveyedFirst {
        // Whose pages are not surveyed in time is told in the plan.
        let surveyed = handle.survey(&policy, Wanted::All);
        if let Ok(surveyed) = timeout(policy.merge.window, surveyed).await {
            surveyed?;
        }
    }
    handle.think(&policy, &goal).await
}
