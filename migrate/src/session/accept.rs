//! Accepts the streams of the one source that a destination waits for.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use crate::protocol::preamble::{PREAMBLE_BYTES, Preamble, StreamRole};
use crate::protocol::{MigrationId, Token};
use crate::quic::endpoint::{seat, shake_hands, turn_away};
use crate::quic::places::{Place, Places};

/// Most connections at once: those of a source, and as many again if it reconnects.
const CONNECTIONS_MAX: usize = 32;
/// Longest time for a handshake, and for the first stream to show its token.
const ADMISSION_TIME: Duration = Duration::from_secs(10);
/// Close code of a connection that is refused.
pub(super) const NOT_ADMITTED: u32 = 2;

/// A stream that showed the right token.
#[derive(Debug)]
pub(super) enum Arrival {
    Control(Connection, SendStream, RecvStream),
    /// A data stream of this number, on the connection with this id.
    Data(usize, u16, RecvStream),
    /// Unrequested pages that follow the guest.
    Background(RecvStream),
    /// Requests for pages, and those pages.
    Requests(SendStream, RecvStream),
    /// The control stream, on a further link.
    Link(Connection, SendStream, RecvStream),
    /// Pages on one of several links, and acknowledgements of them.
    LinkPages(SendStream, RecvStream),
}

/// Admission rules of a destination, and where admitted streams go.
pub(super) struct Gate<T> {
    pub(super) migration: MigrationId,
    pub(super) token: Token,
    pub(super) inputs: mpsc::Sender<T>,
    pub(super) wrap: fn(Arrival) -> T,
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept<T: Send + 'static>(endpoint: Endpoint, gate: Gate<T>) {
    let gate = Arc::new(gate);
    let places = Places::new(CONNECTIONS_MAX);
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        let Some((incoming, mut place)) = seat(incoming, &places) else { continue };
        let gate = gate.clone();
        let hosting = async move {
            let from = incoming.remote_address();
            if let Err(reason) = gate.host(incoming, &mut place).await {
                tracing::debug!(%from, reason, "a connection was not let in");
            }
        };
        connections.spawn(hosting.in_current_span());
    }
}

impl<T> Gate<T> {
    /// Handles the streams of one connection until it is closed.
    async fn host(&self, incoming: Incoming, place: &mut Place) -> Result<(), String> {
        let connection = shake_hands(incoming, place, ADMISSION_TIME).await?;
        let outcome = self.take_streams(&connection).await;
        if let Err(reason) = &outcome {
            turn_away(&connection, NOT_ADMITTED, reason).await;
        }
        outcome
    }

    /// Forwards the streams of a connection until it is closed. The first must come within
    /// `ADMISSION_TIME`; each must show its token within that time after it was opened. Once one
    /// has, the peer may reset others before it does.
    async fn take_streams(&self, connection: &Connection) -> Result<(), String> {
        let late = |_| "no token was shown in time".to_owned();
        let mut next = timeout(ADMISSION_TIME, next_stream(connection)).await.map_err(late)?;
        let mut is_admitted = false;
        while let Some(opened) = next {
            let arrival = timeout(ADMISSION_TIME, self.admit(connection, opened)).await;
            match arrival.map_err(late)?? {
                Some(arrival) => {
                    is_admitted = true;
                    if self.inputs.send((self.wrap)(arrival)).await.is_err() {
                        return Ok(());
                    }
                }
                None if is_admitted => {}
                None => return Ok(()),
            }
            next = next_stream(connection).await;
        }
        Ok(())
    }

    /// Reads a stream's preamble; none if the stream or the connection breaks meanwhile.
    async fn admit(
        &self,
        connection: &Connection,
        (send, mut receive): Opened,
    ) -> Result<Option<Arrival>, String> {
        match (self.read_preamble(&mut receive).await?, send) {
            (Some(StreamRole::Control), Some(send)) => {
                Ok(Some(Arrival::Control(connection.clone(), send, receive)))
            }
            (Some(StreamRole::Data { stream }), None) => {
                Ok(Some(Arrival::Data(connection.stable_id(), stream, receive)))
            }
            (Some(StreamRole::Background), None) => Ok(Some(Arrival::Background(receive))),
            (Some(StreamRole::Requests), Some(send)) => Ok(Some(Arrival::Requests(send, receive))),
            (Some(StreamRole::Link), Some(send)) => {
                Ok(Some(Arrival::Link(connection.clone(), send, receive)))
            }
            (Some(StreamRole::LinkPages), Some(send)) => {
                Ok(Some(Arrival::LinkPages(send, receive)))
            }
            (Some(StreamRole::Control | StreamRole::Requests), None) => {
                Err("a control stream and one of requests go both ways".into())
            }
            (Some(StreamRole::Link | StreamRole::LinkPages), None) => {
                Err("the streams of a link go both ways".into())
            }
            (Some(StreamRole::Data { .. } | StreamRole::Background), Some(_)) => {
                Err("a data stream goes one way only".into())
            }
            (None, _) => Ok(None),
        }
    }

    async fn read_preamble(&self, receive: &mut RecvStream) -> Result<Option<StreamRole>, String> {
        let mut bytes = [0; PREAMBLE_BYTES];
        if receive.read_exact(&mut bytes).await.is_err() {
            return Ok(None);
        }
        let admitted = Preamble::admit(&bytes, self.migration, &self.token);
        admitted.map(Some).map_err(|error| error.to_string())
    }
}

/// A stream that the peer opened; with a sending half if it is bidirectional.
type Opened = (Option<SendStream>, RecvStream);

/// Waits for a stream; none if the connection is closed.
async fn next_stream(connection: &Connection) -> Option<Opened> {
    tokio::select! {
        both = connection.accept_bi() => both.ok().map(|(send, receive)| (Some(send), receive)),
        one = connection.accept_uni() => one.ok().map(|receive| (None, receive)),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::quic::pair::Pair;

    fn gate(migration: MigrationId, token: Token) -> (Gate<Arrival>, mpsc::Receiver<Arrival>) {
        let (inputs, arrivals) = mpsc::channel(4);
        (Gate { migration, token, inputs, wrap: |arrival| arrival }, arrivals)
    }

    /// Opens a stream that shows the token for this role, or resets it before it does.
    async fn open(pair: &Pair, preamble: &Preamble, is_reset: bool) -> SendStream {
        let mut stream = pair.near.open_uni().await.unwrap();
        match is_reset {
            true => stream.reset(1_u32.into()).unwrap(),
            false => stream.write_all(&preamble.encode()).await.unwrap(),
        }
        stream
    }

    #[tokio::test]
    async fn a_stream_that_is_reset_before_its_token_ends_no_other() {
        let (migration, token) = (MigrationId(Uuid::from_u128(7)), Token::random());
        let (gate, mut arrivals) = gate(migration, token);
        let pair = Pair::new().await;
        let preamble = |stream| Preamble { role: StreamRole::Data { stream }, migration, token };
        let taking = gate.take_streams(&pair.far);
        let opening = async {
            let _first = open(&pair, &preamble(0), false).await;
            assert!(matches!(arrivals.recv().await, Some(Arrival::Data(_, 0, _))));
            let _reset = open(&pair, &preamble(1), true).await;
            let _second = open(&pair, &preamble(2), false).await;
            assert!(matches!(arrivals.recv().await, Some(Arrival::Data(_, 2, _))));
        };
        tokio::select! {
            ended = taking => panic!("{ended:?}"),
            () = opening => {}
        }
    }

    #[tokio::test]
    async fn a_peer_that_resets_its_first_stream_is_not_waited_for() {
        let (migration, token) = (MigrationId(Uuid::from_u128(7)), Token::random());
        let (gate, _arrivals) = gate(migration, token);
        let pair = Pair::new().await;
        let preamble = Preamble { role: StreamRole::Background, migration, token };
        let _reset = open(&pair, &preamble, true).await;
        assert_eq!(gate.take_streams(&pair.far).await, Ok(()));
    }
}
