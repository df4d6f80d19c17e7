//! The requests of clients to the service.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::core::{Core, Handle, Message, Published, Reply, refuse};
use super::error::ServiceError;
use super::surveyor::Wanted;
use super::types::{Agenda, DensityStatus};
use super::view::none;
use crate::history::{Listing, Run, RunId};
use crate::plan::Plan;
use crate::policy::{Goal, Policy};

/// Time limit for an answer of the loop. It inspects guests, and gives up each silent one after a
/// second.
const PATIENCE: Duration = Duration::from_secs(8);

/// Time limit for the service to open its files.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// Shutdown: time limits for restoring ksmd, for the last step of the run and for the loop itself,
/// and the pause between two checks whether the run is over.
const KSM_PATIENCE: Duration = Duration::from_secs(10);
const RUN_PATIENCE: Duration = Duration::from_secs(3);
const END_PATIENCE: Duration = Duration::from_secs(3);
const SHUT_DOWN_PAUSE: Duration = Duration::from_millis(20);

/// Which surveys a plan is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// The existing surveys.
    AsKnown,
    /// New ones: all guests whose pages matter are surveyed first, for at most the duration of a
    /// ksmd window. Guests not surveyed by then keep the surveys that they have.
    SurveyedFirst,
}

/// A client of the service.
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
    /// [`ServiceError::Silent`] if it does not within 10 s.
    pub async fn opened(&self) -> Result<(), ServiceError> {
        let mut published = self.published.clone();
        match timeout(OPEN_PATIENCE, published.changed()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ServiceError::Silent),
        }
    }

    /// Returns the state published last.
    #[must_use]
    pub fn published(&self) -> Published {
        self.published.borrow().clone()
    }

    /// Returns the state of the host and its guests.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`], [`ServiceError::Silent`].
    pub async fn status(&self) -> Result<DensityStatus, ServiceError> {
        self.ask(|core, reply| core.answer(reply, status)).await
    }

    /// Returns the plan of what would be done now. `goal` defaults to the policy's, `policy` to
    /// that of `lighter.toml`.
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

    /// Starts a run. `goal` defaults to the policy's. With `only`, the run executes nothing beyond
    /// that plan.
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

    /// Cancels a run, which ends after its current step.
    ///
    /// # Errors
    /// [`ServiceError::NotUnderWay`], [`ServiceError::Silent`].
    pub async fn cancel(&self, id: RunId) -> Result<(), ServiceError> {
        self.call(move |core| core.cancel(id)).await?
    }

    /// Returns the last `count` runs, newest first.
    ///
    /// # Errors
    /// [`ServiceError::NoHistory`], [`ServiceError::Silent`].
    pub async fn runs(&self, count: usize) -> Result<Listing, ServiceError> {
        self.call(move |core| core.records.runs(count)).await?
    }

    /// Returns one run.
    ///
    /// # Errors
    /// [`ServiceError::NoSuchRun`], [`ServiceError::Unreadable`], [`ServiceError::NoHistory`],
    /// [`ServiceError::Silent`].
    pub async fn run(&self, id: RunId) -> Result<Run, ServiceError> {
        self.call(move |core| core.records.run(id)).await?
    }

    /// Returns the run in progress, and the next `count` scheduled runs.
    ///
    /// # Errors
    /// [`ServiceError::Silent`].
    pub async fn agenda(&self, count: usize) -> Result<Agenda, ServiceError> {
        self.call(move |core| core.agenda(count)).await
    }

    /// Cancels the run in progress, restores ksmd's settings, and ends the service. Balloons keep
    /// their size.
    pub async fn shut_down(&self) {
        let wound_up = self.ask_patiently(|core, reply: Reply<bool>| {
            // Wind up even if the client no longer waits.
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
            // The loop may have ended already.
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
                // The caller may no longer wait.
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

    /// Like [`Self::ask`], but without a time limit.
    async fn ask_patiently<T: Send + 'static>(
        &self,
        begin: impl FnOnce(&mut Core<'_>, Reply<T>) + Send + 'static,
    ) -> Result<T, ServiceError> {
        let (reply, reply_receiver) = oneshot::channel();
        let begin = Message::Call(Box::new(move |core| begin(core, reply)));
        self.send.send(begin).await.map_err(|_| ServiceError::Silent)?;
        reply_receiver.await.unwrap_or(Err(ServiceError::Silent))
    }
}

impl Core<'_> {
    /// Spawns a task that computes the answer. The task stops when the client no longer waits.
    fn answer<T, F>(&mut self, mut reply: Reply<T>, find: impl FnOnce(Handle) -> F)
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let found = find(self.handle.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                found = found => {
                    // The caller may no longer wait.
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
    // Thousands of chunks per guest, which are of no use to a reader.
    let surveys = view.situation.guests.iter_mut().filter_map(|it| it.survey.as_mut());
    surveys.for_each(|survey| survey.chunks.clear());
    view.situation.host.other_processes = handle.shared.other_processes.last(&view.situation);
    let read_status = move |core: &mut Core<'_>| DensityStatus {
        remembered: core.remembered(&view.situation),
        situation: view.situation,
        level: core.ledger.level,
        goal: policy.goal,
        file: core.settings.path().map(|path| path.display().to_string()),
        file_error: core.settings.error.clone(),
        missing: view.missing,
        running: core.running().map(|run| run.id),
    };
    Ok(handle.call(read_status).await)
}

async fn plan(
    handle: Handle,
    goal: Option<Goal>,
    policy: Policy,
    pages: Pages,
) -> Result<Plan, ServiceError> {
    let goal = goal.unwrap_or(policy.goal);
    if pages == Pages::SurveyedFirst {
        // The plan names the guests that were not surveyed in time.
        let surveyed = handle.survey(&policy, Wanted::All);
        if let Ok(surveyed) = timeout(policy.merge.window, surveyed).await {
            surveyed?;
        }
    }
    handle.think(&policy, &goal).await
}
