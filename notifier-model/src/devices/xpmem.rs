//! XPMEM: each range that is invalidated is remembered, and nothing is mapped within it.
//!
//! Source: Lameter's description of 2008 and Holt's answers; the driver was never merged. Its invalidations are messages to other kernels, so they sleep where they
//! may.

use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Machine, Sim, SimWord};
use lazytlb_mmu_notifier::{Invalidation, Mirror, MmuNotifier, Node, NotifierKernel};

use super::{device, freed, mirror, released};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, Lock, world};
use crate::names::Mutant;

/// How many ranges it can remember.
const RANGES: usize = 4;

pub(crate) struct Xpmem {
    node: Node<LabNotifier>,
    device: usize,
    lock: Lock,
    /// The ranges: the first entry, and one more than the last; 0 for none.
    firsts: [SimWord<usize>; RANGES],
    ends: [SimWord<usize>; RANGES],
    dead: SimWord<usize>,
}

impl Xpmem {
    pub(super) fn new(device: usize, place: NonNull<Xpmem>) -> Xpmem {
        let words = || core::array::from_fn(|_| AtomicWord::new(0));
        let dead = AtomicWord::new(0);
        Xpmem { node: mirror(place), device, lock: Lock::new(false), firsts: words(), ends: words(), dead }
    }

    fn is_held_off(&self, entry: usize) -> bool {
        let mut ranges = self.firsts.iter().zip(&self.ends);
        let is_any = world().has(Mutant::HeldOffByAny);
        ranges.any(|(first, end)| match end.load(Relaxed) {
            0 => false,
            end => is_any || (first.load(Relaxed)..end).contains(&entry),
        })
    }
}

impl MmuNotifier<LabNotifier> for Xpmem {
    fn release(&self, _: &LabMm) {
        let _ = released(device(self.device), &self.lock, &self.dead);
    }
}

impl Mirror<LabNotifier> for Xpmem {
    fn invalidate_range_start(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let (device, range) = (device(self.device), invalidation.range());
        device.starts();
        if invalidation.is_blockable() {
            LabNotifier.might_sleep();
        }
        world().may_sleep_wrongly();
        self.lock.lock();
        let free = self.ends.iter().position(|end| end.load(Relaxed) == 0).expect("no more ranges than it remembers");
        self.firsts[free].store(range.start(), Relaxed);
        self.ends[free].store(range.end(), Relaxed);
        device.zap(device.hit_by(invalidation));
        device.unlock(&self.lock);
    }

    fn invalidate_range_end(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let (device, range) = (device(self.device), invalidation.range());
        device.ends();
        self.lock.lock();
        let is_it =
            |at: &usize| self.ends[*at].load(Relaxed) == range.end() && self.firsts[*at].load(Relaxed) == range.start();
        if let Some(at) = (0..RANGES).find(is_it) {
            self.ends[at].store(0, Release);
        }
        device.unlock(&self.lock);
    }
}

impl Driver for Xpmem {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        self.lock.lock();
        // Behind the release no end comes.
        let is_dead = || self.dead.load(Relaxed) != 0;
        if self.is_held_off(entry) && !is_dead() {
            device.unlock(&self.lock);
            Sim.spin_until(|| (!self.is_held_off(entry) || is_dead()).then_some(()));
            return Fault::Again;
        }
        let value = device.look_up(entry);
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
