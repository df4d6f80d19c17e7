//! The loop itself: takes messages one at a time, and starts what is due.

use tokio::sync::mpsc;

use super::core::{Core, Inbox, Inspect, Message};
use super::watch::Watch;

impl Core<'_> {
    /// Handles messages, starts what is due, and relieves guests under pressure, until the service
    /// is shut down. Messages from tasks take precedence over those of clients.
    pub(super) async fn serve(
        &mut self,
        inbox: &mut Inbox,
        message_receiver: &mut mpsc::Receiver<Message>,
    ) {
        let mut watch = Watch::default();
        self.publish();
        while !self.is_over {
            let pause = watch.pause(self.scheduler.wait(self.now()));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(pause) => watch.tick(self).await,
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(&ended),
                Some(message) = message_receiver.recv() => self.take(message).await,
                message = inbox.messages.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => self.is_over = true,
                },
            }
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Call(call) => call(self),
            Message::Inspect(inspect) => {
                let Inspect { policy, measured, reply } = *inspect;
                if !reply.is_closed() {
                    let view = self.inspect(&policy, &measured).await;
                    // The caller may no longer wait.
                    let _unwanted = reply.send(view);
                }
            }
        }
    }
}
