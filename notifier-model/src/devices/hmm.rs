//! HMM and all newer drivers: an interval subscriber, and its sequence.
//!
//! Source: Documentation/mm/hmm.rst of Linux 5.5 and later: begin, look up without a lock, retry with the driver's lock held.

use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Ordering::*};
use lazytlb_machine::{Machine, SimWord};
use lazytlb_mmu_notifier::{Event, IntervalNode, Invalidated, Invalidating, MmuIntervalNotifier, WouldBlock};

use super::{device, freed, released};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabNotifier, Lock, world};
use crate::names::Mutant;

pub(crate) struct Hmm {
    node: IntervalNode<LabNotifier>,
    device: usize,
    /// The driver's: a mutex.
    lock: Lock,
    dead: SimWord<usize>,
}

impl Hmm {
    pub(super) fn new(device: usize, place: NonNull<Hmm>) -> Hmm {
        // SAFETY: the driver has the node, and is freed with it.
        let node = unsafe { IntervalNode::new(place) };
        Hmm { node, device, lock: Lock::new(true), dead: AtomicWord::new(0) }
    }
}

impl MmuIntervalNotifier<LabNotifier> for Hmm {
    fn invalidate<'a>(
        &self,
        invalidating: Invalidating<'a, LabNotifier>,
    ) -> Result<Invalidated<'a, LabNotifier>, WouldBlock> {
        let device = device(self.device);
        device.is_called();
        let invalidation = invalidating.invalidation();
        let is_release = invalidation.range().event() == Event::Release;
        if invalidation.is_blockable() || world().has(Mutant::Sleeps) {
            self.lock.lock();
        } else if !self.lock.try_lock() {
            return Err(WouldBlock);
        }
        let invalidated = invalidating.set_seq();
        if is_release {
            self.dead.store(1, Relaxed);
        }
        if !(is_release && world().has(Mutant::NoRelease)) {
            device.zap(device.hit_by(invalidation));
        }
        device.unlock(&self.lock);
        if is_release {
            device.is_released();
        }
        Ok(invalidated)
    }
}

impl Driver for Hmm {
    fn subscription(&'static self) -> Subscription {
        Subscription::Interval(&self.node)
    }

    /// Nobody is told of an interval that is left: what is mapped goes first.
    fn closes(&self) {
        let _ = released(device(self.device), &self.lock, &self.dead);
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        let begin = || world().mm().chain.read_begin(LabNotifier, &self.node);
        let (seq, value) = if world().has(Mutant::SequenceReadLate) {
            let value = device.look_up(entry);
            (begin(), value)
        } else {
            let seq = begin();
            (seq, device.look_up(entry))
        };
        if value == 0 {
            return Fault::Nothing;
        }
        let retry = || self.node.read_retry(seq) && !world().has(Mutant::CounterOnly);
        let unlocked = world().has(Mutant::RetryUnlocked).then(retry);
        self.lock.lock();
        let retry = unlocked.unwrap_or_else(|| {
            device.is_current(&self.lock);
            retry()
        });
        let fault = if self.dead.load(Relaxed) != 0 {
            Fault::Nothing
        } else if retry {
            Fault::Again
        } else {
            device.install(entry, value);
            Fault::Mapped
        };
        if world().has(Mutant::MarksUnderLock) {
            world().locks_page();
        }
        device.unlock(&self.lock);
        if fault == Fault::Mapped && world().has(Mutant::UsesOutside) {
            device.uses(value);
        }
        fault
    }
}
