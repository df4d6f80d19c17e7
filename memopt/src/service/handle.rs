//! How tasks speak to the loop.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::client::Published;
use super::core::Core;
use super::error::ServiceError;
use super::events::{Event, Observer};
use super::strangers::Strangers;
use super::view::{Filter, View};
use super::{Clock, Hypervisor};
use crate::hypervisor::{Failure, GuestRef};
use crate::policy::Policy;

/// What the loop is told.
pub(super) enum Message {
    /// Inspect the host and all guests.
    Inspect(Box<Inspect>),
    /// Run this on the service's state.
    Call(Call),
}

/// Who waits for an answer.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

/// Answers with an error.
pub(super) fn refuse<T>(reply: Reply<T>, error: ServiceError) {
    // Who has asked may be gone.
    let _unwanted = reply.send(Err(error));
}

/// Something that is done with the service's state, at once.
pub(super) type Call = Box<dyn FnOnce(&mut Core<'_>) + Send>;

/// An inspection that a task waits for.
pub(super) struct Inspect {
    pub(super) policy: Policy,
    pub(super) measured: Filter,
    pub(super) reply: Reply<View>,
}

/// What clients send to the loop, and what it publishes for them.
pub struct Inbox {
    pub(super) messages: mpsc::Receiver<Message>,
    pub(super) publish: watch::Sender<Published>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// What tasks use beside the loop.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Whom else the kernel could merge guests with.
    pub(super) strangers: Strangers,
    /// Guests' pages are surveyed for one task at a time.
    pub(super) surveying: tokio::sync::Mutex<()>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
}

impl Shared {
    /// What runs `guest`.
    ///
    /// # Errors
    /// Its process is gone.
    pub(super) fn hypervisor_of(&self, guest: &GuestRef) -> Result<&dyn Hypervisor, Failure> {
        let has = self.hypervisors.iter().find(|it| it.has(guest));
        let it = has.ok_or_else(|| {
            format!("guest {guest} is gone, or was restarted since the plan was made")
        })?;
        Ok(it.as_ref())
    }
}

/// A task's way to its loop. The channel is the loop's own: when the loop is gone, nothing is
/// answered, and the task ends with it.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) send: mpsc::Sender<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Runs `body` on the service's state; returns its result.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Core<'_>) -> T + Send + 'static,
    ) -> T {
        let (reply, told) = oneshot::channel();
        let call = Box::new(move |core: &mut Core<'_>| {
            // Who has asked may be gone.
            let _unwanted = reply.send(body(core));
        });
        self.tell(Message::Call(call), told).await
    }

    /// Inspects the host and all guests, those that are meant by `measured` without any estimate of
    /// what they cost.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`].
    pub(super) async fn inspect(
        &self,
        policy: &Policy,
        measured: Filter,
    ) -> Result<View, ServiceError> {
        let (reply, told) = oneshot::channel();
        let inspect = Inspect { policy: policy.clone(), measured, reply };
        self.tell(Message::Inspect(Box::new(inspect)), told).await
    }

    async fn tell<T>(&self, message: Message, told: oneshot::Receiver<T>) -> T {
        if self.send.send(message).await.is_ok()
            && let Ok(answer) = told.await
        {
            return answer;
        }
        pending().await
    }

    /// Tells the observer.
    pub(super) fn notice(&self, event: &Event<'_>) {
        self.shared.observer.notice(event);
    }

    /// The host's uptime.
    pub(super) fn uptime(&self) -> Duration {
        self.shared.clock.now().uptime
    }
}
