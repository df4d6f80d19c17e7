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
use super::view::{Exactly, View};
use super::{Clock, Hypervisor};
use crate::hypervisor::{Failure, GuestRef};
use crate::policy::Policy;

/// What the loop is told.
pub(super) enum Message {
    /// Inspect the host and all guests.
    Inspect(Box<Inspect>),
    /// Do this with what is known.
    Call(Call),
}

/// Something that is done with what is known, at once.
pub(super) type Call = Box<dyn FnOnce(&mut Core<'_>) + Send>;

/// An inspection that somebody waits for.
pub(super) struct Inspect {
    pub(super) policy: Policy,
    pub(super) exactly: Exactly,
    pub(super) reply: oneshot::Sender<Result<View, ServiceError>>,
}

/// What the loop takes its messages from.
pub struct Inbox {
    pub(super) messages: mpsc::Receiver<Message>,
    pub(super) send: mpsc::Sender<Message>,
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
    /// Nothing does any more.
    pub(super) fn hypervisor_of(&self, guest: &GuestRef) -> Result<&dyn Hypervisor, Failure> {
        let has = self.hypervisors.iter().find(|it| it.has(guest));
        let it = has.ok_or_else(|| format!("there is no guest {guest} any more"))?;
        Ok(it.as_ref())
    }
}

/// A task's way to the loop, which outlives it: when the loop is gone, what is asked is never
/// answered, and the task ends with it.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) send: mpsc::Sender<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Does `body` with what is known; returns what comes of it.
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

    /// Inspects the host and all guests, those that are meant by `exactly` without any estimate of
    /// what they cost.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`].
    pub(super) async fn inspect(
        &self,
        policy: &Policy,
        exactly: Exactly,
    ) -> Result<View, ServiceError> {
        let (reply, told) = oneshot::channel();
        let inspect = Inspect { policy: policy.clone(), exactly, reply };
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
