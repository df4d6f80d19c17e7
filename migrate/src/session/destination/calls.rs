//! Calls to the arriving guest and its factory, on the worker's thread.

use super::super::fetch::Fetch;
use super::{Driver, Input};
use crate::destination::Event;
use crate::guest::{DestinationGuest, GuestDescription, GuestError, Refusal, RefusalKind};

impl Driver {
    pub(super) fn check(&self, guest: GuestDescription) {
        let (factory, input_sender) = (self.factory.clone(), self.input_sender.clone());
        let is_admitted = guest.name == self.session.guest && guest.uuid == self.session.guest_uuid;
        self.worker.run(move || {
            let other = "it is not the guest that this host was asked for";
            let checked = match is_admitted {
                true => factory.check(&guest),
                false => Err(Refusal::new(RefusalKind::Guest, other)),
            };
            let _ = input_sender.send(Input::Event(Event::Checked(checked)));
        });
    }

    pub(super) fn create(&mut self, guest: GuestDescription) {
        self.description = Some(guest.clone());
        let (factory, input_sender) = (self.factory.clone(), self.input_sender.clone());
        self.worker.run(move || {
            let _ = input_sender.send(Input::Created(factory.create(&guest)));
        });
    }

    /// Runs a call to the guest on the worker, and reports the result to the state machine.
    pub(super) fn with_guest(
        &self,
        event: fn(Result<(), GuestError>) -> Event,
        call: impl FnOnce(&dyn DestinationGuest) -> Result<(), GuestError> + Send + 'static,
    ) {
        let Some(guest) = self.guest.clone() else {
            let _ = self
                .input_sender
                .send(Input::Event(event(Err(GuestError::new("it was not built")))));
            return;
        };
        let input_sender = self.input_sender.clone();
        self.worker.run(move || {
            let _ = input_sender.send(Input::Event(event(call(&*guest))));
        });
    }

    /// Loads the state; fails if the pages that are missing could not be dropped before.
    pub(super) fn load_state(&self, state: Vec<u8>) {
        let failure = self.fetch.as_ref().map(Fetch::failure);
        let failpoints = self.line.failpoints().clone();
        self.with_guest(Event::Loaded, move |guest| {
            failpoints.reach("destination.guest", "load");
            match failure.and_then(|failure| failure()) {
                Some(error) => Err(error),
                None => guest.load_state(&state),
            }
        });
    }

    pub(super) fn discard(&mut self) {
        self.discarded = true;
        self.readers.abort_all();
        self.counting.abort_all();
        self.early.clear();
        self.memory = None;
        self.fetch = None;
        self.early_pages.clear();
        // Freeing much memory takes a while, so this thread does not do it.
        let guest = self.guest.take();
        self.worker.run(move || drop(guest));
    }
}
