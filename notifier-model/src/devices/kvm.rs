//! KVM since 2021: a count of the invalidations that go on, a range around all of them, and a sequence for those that are over.
//!
//! Source: virt/kvm/kvm_main.c of 2026. A fault reads the sequence, looks up without a lock, and asks with the lock held whether what it has found may have
//! been invalidated: by what goes on, if the address is within the range, or by what came and went meanwhile.

use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Machine, Sim, SimWord};
use lazytlb_mmu_notifier::{Invalidation, Mirror, MmuNotifier, Node};

use super::{device, freed, mirror, released};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, Lock, world};
use crate::names::Mutant;

pub(crate) struct Kvm {
    node: Node<LabNotifier>,
    device: usize,
    /// `mmu_lock`.
    lock: Lock,
    /// `mmu_invalidate_in_progress`, `_seq`, `_range_start` and `_end`.
    in_progress: SimWord<usize>,
    seq: SimWord<usize>,
    first: SimWord<usize>,
    last: SimWord<usize>,
    dead: SimWord<usize>,
    /// The root of the guest's tables; freed in release.
    root: NonNull<SimWord<usize>>,
}

impl Kvm {
    pub(super) fn new(device: usize, place: NonNull<Kvm>, root: NonNull<SimWord<usize>>) -> Kvm {
        let word = || AtomicWord::new(0);
        Kvm {
            node: mirror(place),
            device,
            lock: Lock::new(false),
            in_progress: word(),
            seq: word(),
            first: word(),
            last: word(),
            dead: word(),
            root,
        }
    }

    /// Whether what goes on may be about an entry.
    fn is_held_off(&self, entry: usize) -> bool {
        self.in_progress.load(Relaxed) > 0 && (self.first.load(Relaxed)..=self.last.load(Relaxed)).contains(&entry)
    }

    /// Whether what was looked up is to be looked up again.
    fn is_to_retry(&self, seq: usize, entry: usize) -> bool {
        self.is_held_off(entry) || (self.seq.load(Relaxed) != seq && !world().has(Mutant::CounterOnly))
    }
}

impl MmuNotifier<LabNotifier> for Kvm {
    fn release(&self, _: &LabMm) {
        let was_dead = released(device(self.device), &self.lock, &self.dead);
        if was_dead == Some(false) {
            Machine::try_with(|machine| machine.free(self.root, Location::caller()));
        }
    }

    fn clear_flush_young(&self, _: &LabMm, _: usize, _: usize) -> bool {
        self.lock.lock();
        let is_there = self.dead.load(Relaxed) == 0 || world().has(Mutant::AgesAfterRelease);
        // SAFETY: in the arena, freed or not.
        let young = is_there && unsafe { self.root.as_ref() }.load(Relaxed) != 0;
        device(self.device).unlock(&self.lock);
        young
    }
}

impl Mirror<LabNotifier> for Kvm {
    fn invalidate_range_start(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let (device, range) = (device(self.device), invalidation.range());
        device.starts();
        if world().has(Mutant::OnlyRelease) {
            return;
        }
        world().may_sleep_wrongly();
        if world().has(Mutant::PutsMm) {
            world().puts_mm();
        }
        self.lock.lock();
        if world().has(Mutant::DropsBeforeCount) {
            device.zap(device.hit_by(invalidation));
            device.unlock(&self.lock);
            self.lock.lock();
        }
        let in_progress = self.in_progress.load(Relaxed);
        self.in_progress.store(in_progress + 1, Relaxed);
        let (first, last) = match in_progress {
            0 => (range.start(), range.last()),
            _ => (range.start().min(self.first.load(Relaxed)), range.last().max(self.last.load(Relaxed))),
        };
        self.first.store(first, Relaxed);
        self.last.store(last, Relaxed);
        if !world().has(Mutant::DropsAtEnd) && !world().has(Mutant::DropsBeforeCount) {
            device.zap(device.hit_by(invalidation));
        }
        device.unlock(&self.lock);
        if world().has(Mutant::RefillsInStart) {
            self.lock.lock();
            device.is_current(&self.lock);
            for entry in device.hit_by(invalidation) {
                device.install(entry, device.look_up(entry));
            }
            device.unlock(&self.lock);
        }
    }

    fn invalidate_range_end(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let device = device(self.device);
        device.ends();
        if world().has(Mutant::OnlyRelease) {
            return;
        }
        self.lock.lock();
        if world().has(Mutant::DropsAtEnd) {
            device.zap(device.hit_by(invalidation));
        }
        self.seq.store(self.seq.load(Relaxed) + 1, Relaxed);
        self.in_progress.store(self.in_progress.load(Relaxed).saturating_sub(1), Relaxed);
        device.unlock(&self.lock);
    }
}

impl Driver for Kvm {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        let read_seq = || self.seq.load(Acquire);
        let (seq, value) = if world().has(Mutant::SequenceReadLate) {
            let value = device.look_up(entry);
            (read_seq(), value)
        } else {
            let seq = read_seq();
            (seq, device.look_up(entry))
        };
        if value == 0 {
            return Fault::Nothing;
        }
        let unlocked = world().has(Mutant::RetryUnlocked).then(|| self.is_to_retry(seq, entry));
        self.lock.lock();
        if self.dead.load(Relaxed) != 0 {
            device.unlock(&self.lock);
            return Fault::Nothing;
        }
        let retry = unlocked.unwrap_or_else(|| {
            device.is_current(&self.lock);
            self.is_to_retry(seq, entry)
        });
        if retry {
            device.unlock(&self.lock);
            // Behind the release no end comes.
            Sim.spin_until(|| (!self.is_held_off(entry) || self.dead.load(Relaxed) != 0).then_some(()));
            return Fault::Again;
        }
        device.install(entry, value);
        device.unlock(&self.lock);
        Fault::Mapped
    }
}
