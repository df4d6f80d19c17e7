//! The serial console: vm-superio's 16550, with a bounded backlog of input in front of its FIFO.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;

use serde::{Deserialize, Serialize};
use vm_superio::SerialState as Registers;
use vm_superio::serial::{NoEvents, Serial};

use super::IrqLine;

/// Most input that waits for the guest to read it, in bytes; the rest is refused.
const BACKLOG_BYTES_MAX: usize = 4096;

/// Bytes of the 16550's receive FIFO as vm-superio models it.
const FIFO_BYTES: usize = 64;

/// Sink of the guest's output.
type Output = Box<dyn Write + Send>;

/// Saved state of the serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register: keeps what the guest writes, and does nothing.
    pub scratch: u8,
    /// The receive FIFO, at most 64 bytes.
    pub fifo: Vec<u8>,
    /// Input that waits for space in the FIFO.
    pub backlog: Vec<u8>,
}

/// The serial console of a guest.
pub(crate) struct SerialPort {
    uart: Serial<IrqLine, NoEvents, Output>,
    backlog: VecDeque<u8>,
    /// True while the guest is paused: input stays in the backlog, so that a save is consistent.
    frozen: bool,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("registers", &self.uart.state()).finish_non_exhaustive()
    }
}

impl SerialPort {
    /// Creates a port that writes to `output`, which must not block for long: the guest waits for
    /// it.
    pub(crate) fn new(irq: IrqLine, output: Output) -> Self {
        Self { uart: Serial::new(irq, output), backlog: VecDeque::new(), frozen: true }
    }

    /// Handles a guest read of the register at `offset`.
    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        let value = self.uart.read(offset);
        self.refill();
        value
    }

    /// Handles a guest write of the register at `offset`. Output that cannot be written is lost, as
    /// on an unconnected cable.
    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        let _ = self.uart.write(offset, value);
        self.refill();
    }

    /// Queues input for the guest; returns how many bytes fitted.
    pub(crate) fn input(&mut self, bytes: &[u8]) -> usize {
        let room = BACKLOG_BYTES_MAX - self.backlog.len().min(BACKLOG_BYTES_MAX);
        let taken = room.min(bytes.len());
        self.backlog.extend(&bytes[..taken]);
        self.refill();
        taken
    }

    /// Holds input in the backlog until [`SerialPort::thaw`].
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Passes input to the guest again.
    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
        self.refill();
    }

    /// Returns the state, including the backlog.
    pub(crate) fn save(&self) -> SerialState {
        let registers = self.uart.state();
        SerialState {
            baud_divisor_low: registers.baud_divisor_low,
            baud_divisor_high: registers.baud_divisor_high,
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            fifo: registers.in_buffer,
            backlog: self.backlog.iter().copied().collect(),
        }
    }

    /// Replaces the state. This may raise the interrupt, so load the interrupt controllers' state
    /// afterwards.
    ///
    /// # Errors
    /// If the state is impossible; the text says why.
    pub(crate) fn load(&mut self, state: &SerialState) -> Result<(), String> {
        let (fifo, backlog) = (state.fifo.len(), state.backlog.len());
        if fifo > FIFO_BYTES || backlog > BACKLOG_BYTES_MAX {
            return Err(format!("serial port with {fifo} and {backlog} bytes of input"));
        }
        let registers = Registers {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo.clone(),
        };
        let output = std::mem::replace(self.uart.writer_mut(), Box::new(std::io::sink()));
        let irq = self.uart.interrupt_evt().clone();
        self.uart = Serial::from_state(&registers, irq, NoEvents, output)
            .map_err(|error| format!("serial port: {error:?}"))?;
        self.backlog = state.backlog.iter().copied().collect();
        Ok(())
    }

    fn refill(&mut self) {
        if self.frozen || self.backlog.is_empty() || self.uart.fifo_capacity() == 0 {
            return;
        }
        let (front, _) = self.backlog.as_slices();
        if let Ok(taken) = self.uart.enqueue_raw_bytes(front) {
            self.backlog.drain(..taken);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A running port without an interrupt line, and the buffer that collects its output.
    pub(crate) fn port_with_output() -> (SerialPort, Arc<Mutex<Vec<u8>>>) {
        let shared = Shared::default();
        let mut port = SerialPort::new(IrqLine::unconnected(), Box::new(shared.clone()));
        port.thaw();
        (port, shared.0)
    }

    fn read_all(port: &mut SerialPort) -> Vec<u8> {
        let mut bytes = Vec::new();
        while port.read(5) & 1 == 1 {
            bytes.push(port.read(0));
        }
        bytes
    }

    #[test]
    fn input_beyond_the_fifo_arrives_in_order() {
        let (mut port, _) = port_with_output();
        let typed: Vec<u8> = (0..200).collect();
        assert_eq!(port.input(&typed), 200);
        assert_eq!(read_all(&mut port), typed);
    }

    #[test]
    fn input_is_bounded() {
        let (mut port, _) = port_with_output();
        assert_eq!(port.input(&[1; 10_000]), BACKLOG_BYTES_MAX);
    }

    #[test]
    fn input_typed_while_frozen_waits_and_is_saved() {
        let (mut port, _) = port_with_output();
        port.freeze();
        assert_eq!(port.input(&[5; 100]), 100);
        assert_eq!(port.read(5) & 1, 0);

        let (mut other, output) = port_with_output();
        other.freeze();
        other.load(&port.save()).unwrap();
        assert_eq!(other.save(), port.save());
        other.thaw();
        assert_eq!(read_all(&mut other), [5; 100]);
        other.write(0, b'x');
        assert_eq!(output.lock().unwrap().as_slice(), b"x", "the output survives a load");
    }

    #[test]
    fn a_state_with_too_much_input_is_refused() {
        let (mut port, _) = port_with_output();
        let fifo = SerialState { fifo: vec![0; 65], ..SerialState::default() };
        assert!(port.load(&fifo).is_err());
        let backlog = SerialState { backlog: vec![0; 10_000], ..SerialState::default() };
        assert!(port.load(&backlog).is_err());
    }
}
