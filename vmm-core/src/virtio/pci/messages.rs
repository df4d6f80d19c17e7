//! Interrupts of a function: which vector each cause has, and MSI-X, whose messages KVM sends when
//! an irqfd is signalled.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::state::Interrupts;
use crate::devices::{FIRST_HOST_MSI_GSI, FIRST_MSI_GSI, MsiRoutes};
use crate::pci::{FUNCTIONS_MAX, Msix};
use crate::virtio::interrupt::Line;
use crate::virtio::registers::QUEUES_MAX;
use crate::virtio::signals::{Cause, Unacknowledged};

/// The vector of a cause that has none (virtio 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;
/// Most vectors of a function: one for each queue, and one for changes of the configuration.
const VECTORS_MAX: u32 = QUEUES_MAX as u32 + 1;

const _: () = assert!(FIRST_MSI_GSI + FUNCTIONS_MAX as u32 * VECTORS_MAX <= FIRST_HOST_MSI_GSI);

/// The interrupts of a function; see the module. Shared by vCPUs, which set vectors, and the
/// device's thread, which interrupts.
#[derive(Debug)]
pub(in crate::virtio) struct Messages {
    inner: Mutex<Inner>,
    /// By vector.
    irqfds: Vec<EventFd>,
    /// `None` without a VM.
    connection: Option<Connection>,
}

/// How messages reach a VM.
#[derive(Debug)]
struct Connection {
    vm: Arc<VmFd>,
    routes: Arc<MsiRoutes>,
    /// The line of vector 0.
    first: u32,
}

#[derive(Debug)]
struct Inner {
    msix: Msix,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    followed: Vec<Followed>,
}

/// A signal that means an interrupt for used buffers of a queue, see [`Line::follow`].
#[derive(Debug)]
struct Followed {
    queue: usize,
    signal: EventFd,
    /// The line that KVM interrupts when the signal is written; `None` while it does not.
    line: Option<u32>,
}

impl Messages {
    /// Returns the interrupts of a function with so many queues, after power-on. They reach no VM.
    ///
    /// # Errors
    /// The error of a system call.
    pub(in crate::virtio) fn new(queues: usize) -> io::Result<Self> {
        let vectors = queues + 1;
        let irqfds: io::Result<Vec<_>> = (0..vectors).map(|_| EventFd::new(EFD_NONBLOCK)).collect();
        let queue_vectors = vec![NO_VECTOR; queues];
        let inner = Inner {
            msix: Msix::new(vectors),
            config_vector: NO_VECTOR,
            queue_vectors,
            followed: Vec::new(),
        };
        Ok(Self { inner: Mutex::new(inner), irqfds: irqfds?, connection: None })
    }

    /// Connects them to `vm`, as those of the device in slot `slot`, until they are dropped.
    ///
    /// # Errors
    /// The error from KVM.
    pub(super) fn routed_by(
        mut self,
        vm: &Arc<VmFd>,
        routes: &Arc<MsiRoutes>,
        slot: usize,
    ) -> Result<Self, kvm_ioctls::Error> {
        let first = FIRST_MSI_GSI + slot as u32 * VECTORS_MAX;
        for (gsi, irqfd) in (first..).zip(&self.irqfds) {
            vm.register_irqfd(irqfd, gsi)?;
        }
        let (vm, routes) = (Arc::clone(vm), Arc::clone(routes));
        self.connection = Some(Connection { vm, routes, first });
        Ok(self)
    }

    /// Returns the number of vectors.
    pub(super) fn vectors(&self) -> usize {
        self.irqfds.len()
    }

    /// Returns the vector for changes of the configuration.
    pub(super) fn config_vector(&self) -> u16 {
        self.inner().config_vector
    }

    /// Returns the vector of a queue.
    pub(super) fn queue_vector(&self, queue: usize) -> u16 {
        self.inner().queue_vectors.get(queue).copied().unwrap_or(NO_VECTOR)
    }

    /// Sets the vector for changes of the configuration; none if there is no such vector.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.inner().config_vector = self.existing(vector);
    }

    /// Sets the vector of a queue; none if there is no such vector.
    pub(super) fn set_queue_vector(&self, queue: usize, vector: u16) {
        let vector = self.existing(vector);
        let mut inner = self.inner();
        if let Some(own) = inner.queue_vectors.get_mut(queue) {
            *own = vector;
        }
        self.follow_vectors(&mut inner);
    }

    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors() { vector } else { NO_VECTOR }
    }

    /// Takes all vectors from their causes, as a reset of the device does. The MSI-X table belongs
    /// to the function and stays.
    pub(super) fn forget_vectors(&self) {
        let mut inner = self.inner();
        inner.config_vector = NO_VECTOR;
        inner.queue_vectors.fill(NO_VECTOR);
        self.follow_vectors(&mut inner);
    }

    /// Puts vectors and MSI-X in the state after power-on: no interrupt is sent from then on.
    pub(super) fn reset(&self) {
        self.forget_vectors();
        self.change(|msix| *msix = Msix::new(self.vectors()));
    }

    /// Handles a read of the MSI-X table.
    pub(super) fn read_table(&self, offset: usize, data: &mut [u8]) {
        self.inner().msix.read_table(offset, data);
    }

    /// Handles a read of the pending bits.
    pub(super) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        self.inner().msix.read_pending(offset, data);
    }

    /// Handles a write of the MSI-X table.
    pub(super) fn write_table(&self, offset: usize, data: &[u8]) {
        self.change(|msix| msix.write_table(offset, data));
    }

    /// Handles a write of the message control register.
    pub(super) fn set_control(&self, control: u16) {
        self.change(|msix| msix.set_control(control));
    }

    /// Changes the table, has KVM know its messages, and delivers what was pending, in this order,
    /// while no other thread interrupts.
    fn change(&self, change: impl FnOnce(&mut Msix)) {
        let mut inner = self.inner();
        change(&mut inner.msix);
        self.route(&inner.msix);
        self.follow_vectors(&mut inner);
        inner.msix.take_due().into_iter().for_each(|vector| self.send(vector));
    }

    fn route(&self, msix: &Msix) {
        let Some(Connection { routes, first, .. }) = &self.connection else { return };
        let messages =
            msix.messages().map(|(vector, message)| (first + u32::from(vector), message));
        if let Err(error) = routes.set(messages) {
            tracing::error!(%error, "cannot route the interrupts of a device to the guest");
        }
    }

    /// Connects the signals of those queues whose vectors deliver now to KVM, and disconnects the
    /// others: a signal for a masked vector must become a pending bit.
    fn follow_vectors(&self, inner: &mut Inner) {
        let Some(connection) = &self.connection else { return };
        let Inner { msix, queue_vectors, followed, .. } = inner;
        for one in followed {
            let vector = queue_vectors.get(one.queue).copied().unwrap_or(NO_VECTOR);
            let line = connection.first + u32::from(vector);
            one.connect(msix.delivers(vector.into()).then_some(line), &connection.vm);
        }
    }

    fn send(&self, vector: u16) {
        if let Some(irqfd) = self.irqfds.get(usize::from(vector)) {
            // It fails only if interrupts are waiting that KVM has not taken.
            let _ = irqfd.write(1);
        }
    }

    fn raise_vector(&self, inner: &mut Inner, vector: u16) {
        if inner.msix.raise(vector) {
            self.send(vector);
        }
    }

    /// Returns the vectors, the table and the pending bits.
    pub(super) fn save(&self) -> Interrupts {
        let inner = self.inner();
        Interrupts {
            msix: inner.msix.save(),
            config_vector: inner.config_vector,
            queue_vectors: inner.queue_vectors.clone(),
        }
    }

    /// Replaces the vectors, the table and the pending bits; `control` is the message control
    /// register.
    ///
    /// # Errors
    /// If the state is impossible; the text says why.
    pub(super) fn load(&self, state: &Interrupts, control: u16) -> Result<(), String> {
        let is_possible = |vector: &u16| self.existing(*vector) == *vector;
        let mut inner = self.inner();
        let vectors = [state.config_vector];
        let mut vectors = vectors.iter().chain(&state.queue_vectors);
        if state.queue_vectors.len() != inner.queue_vectors.len() || !vectors.all(is_possible) {
            return Err("its interrupts have vectors that it has not here".to_owned());
        }
        inner.msix.load(&state.msix)?;
        inner.msix.set_control(control);
        inner.config_vector = state.config_vector;
        inner.queue_vectors.clone_from(&state.queue_vectors);
        self.route(&inner.msix);
        self.follow_vectors(&mut inner);
        Ok(())
    }

    /// Returns how many interrupts were sent by each vector since the last call.
    #[cfg(test)]
    pub(super) fn sent(&self) -> Vec<u64> {
        self.irqfds.iter().map(|irqfd| irqfd.read().unwrap_or(0)).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the lines back: another device may get this one's slot.
impl Drop for Messages {
    fn drop(&mut self) {
        let Some(Connection { vm, routes, first }) = self.connection.take() else { return };
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.followed.iter_mut().for_each(|one| one.connect(None, &vm));
        for (gsi, irqfd) in (first..).zip(&self.irqfds) {
            if let Err(error) = vm.unregister_irqfd(irqfd, gsi) {
                tracing::error!(%error, "KVM keeps an interrupt that it should give up");
            }
        }
        let lines = (first..).take(self.irqfds.len());
        if let Err(error) = routes.set(lines.map(|gsi| (gsi, None))) {
            tracing::error!(%error, "cannot take the routes of a device's interrupts away");
        }
    }
}

impl Followed {
    /// Connects the signal to `line`: KVM interrupts it when the signal is written. Without a line,
    /// or if KVM refuses, the device's thread takes the signal.
    fn connect(&mut self, line: Option<u32>, vm: &VmFd) {
        if self.line == line {
            return;
        }
        if let Some(before) = self.line.take()
            && let Err(error) = vm.unregister_irqfd(&self.signal, before)
        {
            tracing::error!(%error, "KVM keeps an interrupt that it should give up");
        }
        if let Some(line) = line {
            match vm.register_irqfd(&self.signal, line) {
                Ok(()) => self.line = Some(line),
                Err(error) => tracing::warn!(%error, "KVM does not take the interrupts of a queue"),
            }
        }
    }
}

impl Line for Messages {
    fn raise(&self, cause: Cause) {
        let mut inner = self.inner();
        let vector = match cause {
            Cause::Used(queue) => inner.queue_vectors.get(queue).copied().unwrap_or(NO_VECTOR),
            Cause::Config => inner.config_vector,
        };
        self.raise_vector(&mut inner, vector);
    }

    /// With MSI-X a driver acknowledges no used buffers, so this raises the vectors of all queues.
    /// It acknowledges a changed configuration by reading it; told again, Linux would log the size
    /// of a disk.
    fn repeat(&self, unacknowledged: Unacknowledged) {
        let mut inner = self.inner();
        let mut vectors = inner.queue_vectors.clone();
        vectors.extend(unacknowledged.config.then_some(inner.config_vector));
        vectors.sort_unstable();
        vectors.dedup();
        vectors.into_iter().for_each(|vector| self.raise_vector(&mut inner, vector));
    }

    fn follow(&self, queue: usize, signal: EventFd) {
        let mut inner = self.inner();
        inner.followed.push(Followed { queue, signal, line: None });
        self.follow_vectors(&mut inner);
    }

    /// Before Linux 5.11, KVM interrupts without reading the signal, so one that it has is left
    /// alone. Read under the lock: the guest may mask the vector meanwhile.
    fn take(&self, queue: usize, signal: &EventFd) -> bool {
        let inner = self.inner();
        let mut followed = inner.followed.iter().filter(|one| one.queue == queue);
        followed.all(|one| one.line.is_none()) && signal.read().is_ok()
    }
}
