//! Lets in the streams of the one source that a destination waits for.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use super::preamble::{PREAMBLE_BYTES, Preamble, StreamRole};
use crate::protocol::{MigrationId, Token};
use crate::quic::LinkError;
use crate::quic::endpoint::turn_away;

/// Connections at once; a source has four, and more while it comes back.
const CONNECTIONS_MAX: usize = 16;
/// Time for a handshake, and for the first stream to show its token.
const ADMISSION_TIME: Duration = Duration::from_secs(10);
/// Code with which a connection is closed that is not let in.
const NOT_ADMITTED: u32 = 2;

/// A stream that showed the right token.
#[derive(Debug)]
pub(super) enum Arrival {
    Control(Connection, SendStream, RecvStream),
    Data(u16, RecvStream),
}

/// Who is let in, and where to.
pub(super) struct Gate<T> {
    pub(super) migration: MigrationId,
    pub(super) token: Token,
    pub(super) inputs: mpsc::Sender<T>,
    pub(super) wrap: fn(Arrival) -> T,
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept<T: Send + 'static>(endpoint: Endpoint, gate: Gate<T>) {
    let gate = Arc::new(gate);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let gate = gate.clone();
        let hosting = async move {
            let from = incoming.remote_address();
            if let Err(reason) = gate.host(incoming).await {
                tracing::warn!(%from, reason, "a connection was not let in");
            }
            drop(place);
        };
        connections.spawn(hosting.in_current_span());
    }
}

impl<T> Gate<T> {
    /// Takes the streams of one connection, until it is gone.
    async fn host(&self, incoming: Incoming) -> Result<(), String> {
        let from = incoming.remote_address();
        let connection = timeout(ADMISSION_TIME, incoming)
            .await
            .map_err(|_| "the handshake took too long")?
            .map_err(|error| LinkError::explain(&error, from, "").to_string())?;
        let mut admitted = false;
        loop {
            let next = timeout(ADMISSION_TIME, self.next(&connection));
            match next.await {
                Ok(Ok(Some(arrival))) => {
                    admitted = true;
                    if self.inputs.send((self.wrap)(arrival)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(reason)) => {
                    turn_away(&connection, NOT_ADMITTED, &reason).await;
                    return Err(reason);
                }
                Err(_) if admitted => {}
                Err(_) => {
                    let reason = "no token was shown in time";
                    turn_away(&connection, NOT_ADMITTED, reason).await;
                    return Err(reason.into());
                }
            }
        }
    }

    /// Waits for a stream and its preamble; none when the connection is gone.
    async fn next(&self, connection: &Connection) -> Result<Option<Arrival>, String> {
        tokio::select! {
            opened = connection.accept_bi() => {
                let Ok((send, mut receive)) = opened else { return Ok(None) };
                match self.read_preamble(&mut receive).await? {
                    Some(StreamRole::Control) => {
                        Ok(Some(Arrival::Control(connection.clone(), send, receive)))
                    }
                    Some(StreamRole::Data { .. }) => Err("a data stream goes one way only".into()),
                    None => Ok(None),
                }
            }
            opened = connection.accept_uni() => {
                let Ok(mut receive) = opened else { return Ok(None) };
                match self.read_preamble(&mut receive).await? {
                    Some(StreamRole::Data { stream }) => Ok(Some(Arrival::Data(stream, receive))),
                    Some(StreamRole::Control) => Err("a control stream goes both ways".into()),
                    None => Ok(None),
                }
            }
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
