//! KVM in February 2008: nothing is held off. Each translation has a reference to its page, and both are dropped when an invalidation ends, so the page
//! cannot be freed early.
//!
//! Source: Arcangeli, 17 February 2008. Pages are freed late, and until the end a device uses pages that the CPUs have left, which is why it was given up.

use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Ordering::*};
use lazytlb_machine::{Machine, SimWord};
use lazytlb_mmu_notifier::{Invalidation, Mirror, MmuNotifier, Node};

use super::{device, freed, mirror};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, Lock, world};

pub(crate) struct Pins {
    node: Node<LabNotifier>,
    device: usize,
    lock: Lock,
    dead: SimWord<usize>,
}

impl Pins {
    pub(super) fn new(device: usize, place: NonNull<Pins>) -> Pins {
        Pins { node: mirror(place), device, lock: Lock::new(false), dead: AtomicWord::new(0) }
    }

    fn drop_all(&self, device: &Device, entries: impl Iterator<Item = usize> + Clone) {
        for entry in entries {
            let value = device.spte(entry);
            if let Some(page) = world().pages.page_of(value) {
                device.zap(entry..=entry);
                world().pages.put_page(page);
            }
        }
    }
}

impl MmuNotifier<LabNotifier> for Pins {
    fn release(&self, _: &LabMm) {
        let device = device(self.device);
        device.is_called();
        self.lock.lock();
        self.dead.store(1, Relaxed);
        self.drop_all(device, device.entries.clone());
        device.unlock(&self.lock);
        device.is_released();
    }
}

impl Mirror<LabNotifier> for Pins {
    fn invalidate_range_start(&self, _: &LabMm, _: Invalidation<'_>) {
        device(self.device).starts();
    }

    fn invalidate_range_end(&self, _: &LabMm, invalidation: Invalidation<'_>) {
        let device = device(self.device);
        device.ends();
        self.lock.lock();
        self.drop_all(device, device.hit_by(invalidation));
        device.unlock(&self.lock);
    }
}

impl Driver for Pins {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        let pages = &world().pages;
        let value = device.look_up(entry);
        let Some(page) = pages.page_of(value) else { return Fault::Nothing };
        self.lock.lock();
        if self.dead.load(Relaxed) != 0 || device.spte(entry) != 0 {
            device.unlock(&self.lock);
            return Fault::Mapped;
        }
        let fault = if !pages.get_page(page) {
            Fault::Again
        } else if device.look_up(entry) == value {
            device.is_current(&self.lock);
            device.install(entry, value);
            Fault::Mapped
        } else {
            pages.put_page(page);
            Fault::Again
        };
        device.unlock(&self.lock);
        fault
    }
}
