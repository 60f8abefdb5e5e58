//! GRU, and KVM until 2021: nothing is mapped while anything is invalidated.
//!
//! Source: the GRU driver's start, end and miss handler. There is a count and no sequence, so what is used was looked up behind the test, with the lock
//! held under which a start drops what is mapped.

use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Machine, Sim, SimWord};
use lazytlb_mmu_notifier::{Invalidation, Mirror, MmuNotifier, Node};

use super::{device, freed, mirror, released};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, Lock, world};
use crate::names::Mutant;

pub(crate) struct Gru {
    node: Node<LabNotifier>,
    device: usize,
    lock: Lock,
    /// `ms_range_active`.
    active: SimWord<usize>,
    dead: SimWord<usize>,
}

impl Gru {
    pub(super) fn new(device: usize, place: NonNull<Gru>) -> Gru {
        let word = || AtomicWord::new(0);
        Gru { node: mirror(place), device, lock: Lock::new(false), active: word(), dead: word() }
    }
}

impl MmuNotifier<LabNotifier> for Gru {
    fn release(&self, _: &LabMm) {
        let _ = released(device(self.device), &self.lock, &self.dead);
    }
}

impl Mirror<LabNotifier> for Gru {
    fn invalidate_range_start(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let device = device(self.device);
        device.starts();
        world().may_sleep_wrongly();
        self.lock.lock();
        self.active.store(self.active.load(Relaxed) + 1, Relaxed);
        device.zap(device.hit_by(invalidation));
        device.unlock(&self.lock);
    }

    fn invalidate_range_end(&self, _: &LabMm, _: Invalidation<'_>) {
        let device = device(self.device);
        device.ends();
        self.lock.lock();
        self.active.store(self.active.load(Relaxed).saturating_sub(1), Release);
        device.unlock(&self.lock);
    }
}

impl Driver for Gru {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        let early = world().has(Mutant::LooksUpFirst).then(|| device.look_up(entry));
        self.lock.lock();
        // Behind the release no end comes.
        let is_dead = || self.dead.load(Relaxed) != 0;
        if self.active.load(Relaxed) > 0 && !is_dead() {
            device.unlock(&self.lock);
            Sim.spin_until(|| (self.active.load(Acquire) == 0 || is_dead()).then_some(()));
            return Fault::Again;
        }
        let value = early.unwrap_or_else(|| device.look_up(entry));
        let fault = if value == 0 || is_dead() {
            Fault::Nothing
        } else {
            device.is_current(&self.lock);
            device.install(entry, value);
            Fault::Mapped
        };
        device.unlock(&self.lock);
        fault
    }
}
