//! How tasks communicate with the loop.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::client::Published;
use super::core::Core;
use super::error::ServiceError;
use super::events::{Event, Observer};
use super::other_processes::OtherProcesses;
use super::view::{Filter, View};
use super::{Clock, Hypervisor};
use crate::hypervisor::{Failure, GuestRef};
use crate::policy::Policy;

/// A message to the loop.
pub(super) enum Message {
    /// Inspect the host and all guests.
    Inspect(Box<Inspect>),
    /// Call this with the service's state.
    Call(Call),
}

/// Where an answer is sent.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

/// Answers with an error.
pub(super) fn refuse<T>(reply: Reply<T>, error: ServiceError) {
    // The caller may no longer wait.
    let _unwanted = reply.send(Err(error));
}

/// A call with the service's state, executed synchronously by the loop.
pub(super) type Call = Box<dyn FnOnce(&mut Core<'_>) + Send>;

/// A request for an inspection.
pub(super) struct Inspect {
    pub(super) policy: Policy,
    pub(super) measured: Filter,
    pub(super) reply: Reply<View>,
}

/// The loop's end of the channels to its clients: their messages, and the state published to them.
pub struct Inbox {
    pub(super) messages: mpsc::Receiver<Message>,
    pub(super) publish: watch::Sender<Published>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// What tasks use without going through the loop.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hypervisors: Vec<Arc<dyn Hypervisor>>,
    /// Other processes that the kernel could merge guests with.
    pub(super) other_processes: OtherProcesses,
    /// Held while surveying: guests are surveyed for one task at a time.
    pub(super) surveying: tokio::sync::Mutex<()>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
}

impl Shared {
    /// Returns the hypervisor that runs `guest`.
    ///
    /// # Errors
    /// If its process is gone.
    pub(super) fn hypervisor_of(&self, guest: &GuestRef) -> Result<&dyn Hypervisor, Failure> {
        let has = self.hypervisors.iter().find(|it| it.has(guest));
        let it = has.ok_or_else(|| {
            format!("guest {guest} is gone, or was restarted since the plan was made")
        })?;
        Ok(it.as_ref())
    }
}

/// A task's connection to its loop. The channel belongs to this loop: when the loop is gone, calls
/// never return, and the task is dropped with it.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) send: mpsc::Sender<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Handle {
    /// Runs `body` on the service's state, and returns its result.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Core<'_>) -> T + Send + 'static,
    ) -> T {
        let (reply, receiver) = oneshot::channel();
        let call = Box::new(move |core: &mut Core<'_>| {
            // The caller may no longer wait.
            let _unwanted = reply.send(body(core));
        });
        self.request(Message::Call(call), receiver).await
    }

    /// Inspects the host and all guests. The cost of guests selected by `measured` is measured
    /// exactly.
    ///
    /// # Errors
    /// [`ServiceError::Inspect`].
    pub(super) async fn inspect(
        &self,
        policy: &Policy,
        measured: Filter,
    ) -> Result<View, ServiceError> {
        let (reply, receiver) = oneshot::channel();
        let inspect = Inspect { policy: policy.clone(), measured, reply };
        self.request(Message::Inspect(Box::new(inspect)), receiver).await
    }

    async fn request<T>(&self, message: Message, receiver: oneshot::Receiver<T>) -> T {
        if self.send.send(message).await.is_ok()
            && let Ok(answer) = receiver.await
        {
            return answer;
        }
        pending().await
    }

    /// Notifies the observer.
    pub(super) fn notice(&self, event: &Event<'_>) {
        self.shared.observer.notice(event);
    }

    /// Returns the host's uptime.
    pub(super) fn uptime(&self) -> Duration {
        self.shared.clock.now().uptime
    }
}
