//! Several links at once: how the source adds them, and what it does when one is lost.

use std::net::IpAddr;

use quinn::{Connection, Endpoint};

use super::super::connect::{Joined, Route, join};
use super::super::control::{Control, Joining};
use super::super::pace::Next;
use super::{Driver, Input};
use crate::phase::Phase;
use crate::protocol::{DestinationMessage, FEATURE_LINKS};
use crate::quic::{LinkError, endpoint};
use crate::source::Event;

impl Driver {
    /// Keeps the connections on further links until the destination can add them.
    pub(super) fn keep_links(&mut self, links: Vec<(IpAddr, Result<Connection, LinkError>)>) {
        for (link, connected) in links {
            match connected {
                Ok(connection) => self.further.push((link, connection)),
                Err(error) => self.not_used(link, &error.to_string()),
            }
        }
    }

    /// Handles a message. Before the greeting is handled, the destination adds the further links:
    /// no message may be under way meanwhile.
    pub(super) fn hear_message(&mut self, message: DestinationMessage) -> Next {
        let can_join = matches!(&message, DestinationMessage::Welcome { features, .. }
            if features.has(FEATURE_LINKS));
        let Some(found) = self.found.clone().filter(|_| can_join && !self.further.is_empty())
        else {
            return self.handle(Event::Message(message));
        };
        let links = std::mem::take(&mut self.further);
        let (input_sender, generation) = (self.input_sender.clone(), self.line.generation());
        let migration = self.session.migration;
        self.tasks.spawn(async move {
            let joined = join(links, found, migration).await;
            let _ = input_sender.send(Input::Joined(generation, message, joined));
        });
        Next::GoOn
    }

    /// The destination has added these links.
    pub(super) fn on_joined(&mut self, welcome: DestinationMessage, joined: Vec<Joined>) -> Next {
        let name = self.found.as_ref().map_or("", |found| &found.node.name).to_owned();
        let inbox = self.line.inbox(self.hear.clone(), Input::Heard);
        for (link, joined) in joined {
            let (connection, stream) = match joined {
                Ok(joined) => joined,
                Err(why) => {
                    self.not_used(link, &why);
                    continue;
                }
            };
            if let Some(control) = self.line.control_mut() {
                let joining = Joining { connection, stream, greeting: &[] };
                control.join(joining, &name, &mut self.tasks, &inbox);
            }
        }
        if let Some(control) = self.line.control() {
            control.give_up_silent(&mut self.tasks, inbox);
        }
        self.handle(Event::Message(welcome))
    }

    fn not_used(&self, link: IpAddr, why: &str) {
        tracing::warn!(%link, why, "a link cannot be used; the others carry all");
        self.links.lose(link, why);
    }

    /// A link is lost, and others are left. Rounds repeat on those what it has not delivered. Of
    /// memory that follows its guest, only the destination knows what it lacks: it says so on a new
    /// connection. Before the commit there can be none, but little has been sent: all of it is sent
    /// again.
    pub(super) fn link_lost(&mut self, link: IpAddr, why: &str) -> Next {
        tracing::warn!(%link, why, "a link is lost; the others go on");
        self.links.lose(link, why);
        self.leave_link(link);
        if self.is_serving() {
            if self.machine.phase() == Phase::Postcopy {
                return self.lost(why);
            }
            self.serve();
        }
        self.publish();
        Next::GoOn
    }

    /// Has the destination looked for on another link, if it was found on this one.
    fn leave_link(&mut self, link: IpAddr) {
        let is_found_there = |found: &&Route| found.process.ip() == link;
        let Some(found) = self.found.as_ref().filter(is_found_there) else { return };
        let left = self.line.control().map(Control::connections).unwrap_or_default();
        if let Some(other) = left.first() {
            let route = found.at(other.remote_address().ip());
            self.prefer(route);
        }
    }

    /// Looks for the destination on this route first. The next record names it.
    pub(super) fn prefer(&mut self, route: Route) {
        // Unless an operator's address is being recorded.
        let process = |route: Option<&Route>| route.map(|route| route.process);
        if process(self.found.as_ref()) == process(self.named.as_ref()) {
            self.named = Some(route.clone());
        }
        self.found = Some(route);
    }

    /// Returns the routes on which to look for the destination again: that of `found` first, then
    /// the one on which it was last reached, or all links.
    pub(super) fn routes(&mut self, found: &Route) -> Result<Vec<(Endpoint, Route)>, LinkError> {
        if !self.session.has_links() {
            let endpoint = match self.endpoints.last() {
                // For memory, as one of several that follow.
                Some(last) if self.machine.phase() > Phase::Precopy => last.clone(),
                // The only one for memory from now on.
                Some(_) => self.redialer(found)?,
                None => endpoint::dialer(found.node.address, &self.tls)?,
            };
            let mut routes = vec![(endpoint, found.clone())];
            let elsewhere = |route: &Route| route.process != found.process;
            if let Some(reached) = self.reached.clone().filter(elsewhere) {
                routes.push((self.redialer(&reached)?, reached));
            }
            return Ok(routes);
        }
        let first = found.process.ip();
        let others = self.session.links.clone().into_iter().filter(|link| *link != first);
        let addresses: Vec<_> = std::iter::once(first).chain(others).collect();
        let routes = addresses.into_iter().map(|address| {
            let route = found.at(address);
            Ok((self.redialer(&route)?, route))
        });
        routes.collect()
    }

    fn redialer(&mut self, route: &Route) -> Result<Endpoint, LinkError> {
        let address = route.process.ip();
        if let Some((_, redialer)) = self.redialers.iter().find(|(it, _)| *it == address) {
            return Ok(redialer.clone());
        }
        let redialer = endpoint::dialer_for_link(route.process, &self.tls)?;
        self.redialers.push((address, redialer.clone()));
        Ok(redialer)
    }
}
