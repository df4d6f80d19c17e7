//! A status line: `check name=value name=value ...`, built on the stack.

use crate::linux;

const BYTES_MAX: usize = 512;

/// A line under construction.
pub struct Line {
    bytes: [u8; BYTES_MAX],
    length: usize,
}

impl Line {
    /// A line that starts with `word`.
    pub fn new(word: &str) -> Self {
        let mut line = Self { bytes: [0; BYTES_MAX], length: 0 };
        line.text(word);
        line
    }

    /// Adds ` name=value`.
    pub fn field(&mut self, name: &str, value: u64) {
        self.text(" ");
        self.text(name);
        self.text("=");
        self.number(value);
    }

    /// Adds `text`; what does not fit is dropped.
    pub fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            self.byte(byte);
        }
    }

    /// Adds `value` in decimal.
    pub fn number(&mut self, value: u64) {
        if value >= 10 {
            self.number(value / 10);
        }
        self.byte(b'0' + (value % 10) as u8);
    }

    /// Ends the line and writes it to the console.
    pub fn print(mut self) {
        self.byte(b'\n');
        linux::write(&self.bytes[..self.length]);
    }

    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }
}
