//! RDMA's on-demand paging as of 2014: each region counts the invalidations that go on, and has a sequence.
//!
//! Source: drivers/infiniband/core/umem_odp.c of Linux 3.19. A region that comes while something is invalidated cannot know whether it is met: it has no
//! count of its own until nothing goes on, and who faults waits. (The interval subscribers' deferred list comes from here.)

use core::ops::{Range, RangeInclusive};
use core::panic::Location;
use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Memory, Ordering::*};
use lazytlb_machine::{Machine, Sim, SimWord};
use lazytlb_mmu_notifier::{Invalidation, Mirror, MmuNotifier, Node};

use super::{device, freed, mirror, released};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, Lock, world};
use crate::names::Mutant;

pub(crate) struct Odp {
    node: Node<LabNotifier>,
    device: usize,
    lock: Lock,
    /// How many invalidations go on, of any address.
    active: SimWord<usize>,
    /// Whether the region, which the first fault makes, has a count of its own.
    counts: SimWord<usize>,
    /// Whether it is there.
    made: SimWord<usize>,
    /// How many of them are about the region.
    count: SimWord<usize>,
    seq: SimWord<usize>,
    /// Where it is: the first entry, and how many there are.
    first: SimWord<usize>,
    entries: SimWord<usize>,
    dead: SimWord<usize>,
    /// A region below this one, destroyed when it is invalidated; 1 while it is there.
    has_child: SimWord<usize>,
    child: NonNull<SimWord<usize>>,
}

impl Odp {
    pub(super) fn new(device: usize, place: NonNull<Odp>, child: NonNull<SimWord<usize>>) -> Odp {
        let word = || AtomicWord::new(0);
        Odp {
            node: mirror(place),
            device,
            lock: Lock::new(false),
            active: word(),
            counts: word(),
            made: word(),
            count: word(),
            seq: word(),
            first: word(),
            entries: AtomicWord::new(usize::MAX),
            dead: word(),
            has_child: AtomicWord::new(1),
            child,
        }
    }

    fn is_held_off(&self) -> bool {
        self.counts.load(Acquire) == 0 || self.count.load(Relaxed) > 0
    }

    /// Whether it was released: behind that no end comes.
    fn is_dead(&self) -> bool {
        self.dead.load(Relaxed) != 0
    }

    /// The entries that the region has. With the lock held.
    fn region(&self) -> Range<usize> {
        let first = self.first.load(Relaxed);
        first..first + self.entries.load(Relaxed)
    }

    /// Those of an invalidation. With the lock held.
    fn hit_by(&self, device: &Device, invalidation: Invalidation<'_>) -> impl Iterator<Item = usize> + Clone + use<> {
        let region = self.region();
        device.hit_by(invalidation).filter(move |entry| region.contains(entry))
    }
}

impl MmuNotifier<LabNotifier> for Odp {
    fn release(&self, _: &LabMm) {
        let _ = released(device(self.device), &self.lock, &self.dead);
    }
}

impl Mirror<LabNotifier> for Odp {
    fn invalidate_range_start(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let device = device(self.device);
        device.starts();
        world().may_sleep_wrongly();
        self.lock.lock();
        self.active.store(self.active.load(Relaxed) + 1, Relaxed);
        let hit = self.hit_by(device, invalidation);
        if self.counts.load(Relaxed) != 0 && hit.clone().next().is_some() {
            self.count.store(self.count.load(Relaxed) + 1, Relaxed);
        }
        device.zap(hit);
        device.unlock(&self.lock);
        // Of two that come at once, one destroys it (d3d930411ce3).
        let is_mine = if world().has(Mutant::DestroysTwice) {
            self.has_child.load(Relaxed) != 0
        } else {
            self.has_child.compare_exchange(1, 0, Relaxed, Relaxed).is_ok()
        };
        if is_mine {
            self.has_child.store(0, Relaxed);
            Machine::with(|machine| machine.free(self.child, Location::caller()));
        }
    }

    fn invalidate_range_end(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let device = device(self.device);
        device.ends();
        self.lock.lock();
        if self.counts.load(Relaxed) != 0 && self.hit_by(device, invalidation).next().is_some() {
            self.seq.store(self.seq.load(Relaxed) + 1, Relaxed);
            self.count.store(self.count.load(Relaxed).saturating_sub(1), Release);
        }
        let active = self.active.load(Relaxed).saturating_sub(1);
        self.active.store(active, Relaxed);
        if active == 0 && self.made.load(Relaxed) != 0 {
            self.counts.store(1, Release);
        }
        device.unlock(&self.lock);
    }
}

impl Driver for Odp {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    // What counts an invalidation where it starts must count it where it ends, so a region is moved when none goes on (rereg_user_mr; KVM's memslots
    // likewise).
    fn moves(&self, device: &Device, entries: RangeInclusive<usize>) {
        self.lock.lock();
        while self.active.load(Relaxed) != 0 && !self.is_dead() && !world().has(Mutant::MovesUnawaited) {
            device.unlock(&self.lock);
            Sim.spin_until(|| (self.active.load(Acquire) == 0 || self.is_dead()).then_some(()));
            self.lock.lock();
        }
        self.first.store(*entries.start(), Relaxed);
        self.entries.store(entries.count(), Relaxed);
        self.seq.store(self.seq.load(Relaxed) + 1, Relaxed);
        device.zap(device.entries.clone());
        device.unlock(&self.lock);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        self.lock.lock();
        if self.made.load(Relaxed) == 0 {
            self.made.store(1, Relaxed);
            if self.active.load(Relaxed) == 0 {
                self.counts.store(1, Release);
            }
        }
        let is_held_off = self.is_held_off() && !self.is_dead();
        let seq = self.seq.load(Relaxed);
        let is_mine = self.region().contains(&entry);
        device.unlock(&self.lock);
        if !is_mine {
            return Fault::Nothing;
        }
        if is_held_off {
            Sim.spin_until(|| (!self.is_held_off() || self.is_dead()).then_some(()));
            return Fault::Again;
        }
        let value = device.look_up(entry);
        if value == 0 {
            return Fault::Nothing;
        }
        self.lock.lock();
        let fault = if self.is_dead() {
            Fault::Nothing
        } else if self.is_held_off() || (self.seq.load(Relaxed) != seq && !world().has(Mutant::CounterOnly)) {
            Fault::Again
        } else {
            device.is_current(&self.lock);
            device.install(entry, value);
            Fault::Mapped
        };
        device.unlock(&self.lock);
        fault
    }
}
