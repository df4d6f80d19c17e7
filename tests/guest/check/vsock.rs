//! Echoes what a program on the host sends on a vsock port, one program at a time.

use crate::linux::{RESETS, VsockSocket, WOULD_BLOCK};

/// The listening port, and the program that has connected to it.
pub struct Echo {
    listener: VsockSocket,
    program: Option<VsockSocket>,
    echoed: u64,
    resets: u64,
}

impl Echo {
    /// Listens at `port`.
    ///
    /// # Errors
    /// The kernel's error number, if a system call fails.
    pub fn listen(port: u32) -> Result<Self, u64> {
        Ok(Self { listener: VsockSocket::listen(port)?, program: None, echoed: 0, resets: 0 })
    }

    /// Echoes what has arrived since the last call, or accepts a connection.
    pub fn turn(&mut self) {
        let Some(program) = &self.program else {
            self.program = self.listener.accept();
            return;
        };
        let mut buffer = [0; 64];
        match program.read(&mut buffer) {
            Ok(count) if count > 0 => self.echoed += program.write(&buffer[..count]) as u64,
            Err(WOULD_BLOCK) => {}
            ended => {
                self.resets += u64::from(ended.is_err_and(|error| RESETS.contains(&error)));
                self.program = None;
            }
        }
    }

    /// Number of bytes echoed.
    pub fn echoed(&self) -> u64 {
        self.echoed
    }

    /// Number of connections that ended with a reset.
    pub fn resets(&self) -> u64 {
        self.resets
    }
}
