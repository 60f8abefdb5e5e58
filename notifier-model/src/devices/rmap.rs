//! The driver of 2008 that has a reverse map of its own: it is told of pages, and by which addresses it maps them it knows by itself.
//!
//! Source: the skeleton of patch 6 of Lameter's posting of 15 February 2008: the page is locked, it is looked whether it is still mapped, and then it is exported.

use core::ptr::NonNull;

use lazytlb_machine::Machine;
use lazytlb_mmu_notifier::rmap::{CannotEvict, MmuRmapNotifier, RmapNode};

use super::{device, freed};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabNotifier, Lock, world};
use crate::memory::{PageHead, frame};

pub(crate) struct Rmap {
    node: RmapNode<LabNotifier, PageHead>,
    device: usize,
    lock: Lock,
}

impl Rmap {
    pub(super) fn new(device: usize, place: NonNull<Rmap>) -> Rmap {
        // SAFETY: the driver has the node, and is freed with it.
        let node = unsafe { RmapNode::new(place) };
        Rmap { node, device, lock: Lock::new(false) }
    }

    /// The driver's lock is held, and is released.
    fn drops(&self, page: &PageHead) {
        let device = device(self.device);
        device.is_called();
        for entry in device.entries.clone() {
            if frame(device.spte(entry)) == page.frame() {
                device.zap(entry..=entry);
            }
        }
        device.unlock(&self.lock);
    }
}

impl MmuRmapNotifier<PageHead> for Rmap {
    fn try_invalidate_page(&self, page: &PageHead) -> Result<(), CannotEvict> {
        if !self.lock.try_lock() {
            return Err(CannotEvict);
        }
        self.drops(page);
        Ok(())
    }

    fn invalidate_page(&self, page: &PageHead) {
        self.lock.lock();
        self.drops(page);
    }
}

impl Driver for Rmap {
    fn subscription(&'static self) -> Subscription {
        Subscription::Rmap(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    fn fault(&self, device: &Device, entry: usize) -> Fault {
        let value = device.look_up(entry);
        let Some(page) = world().pages.head_of(value) else { return Fault::Nothing };
        page.lock.lock();
        let is_mapped = frame(device.look_up(entry)) == frame(value);
        if is_mapped {
            self.lock.lock();
            world().rmap.export_page(page);
            device.is_current(&self.lock);
            device.install(entry, value);
            device.unlock(&self.lock);
        }
        page.lock.unlock();
        if is_mapped { Fault::Mapped } else { Fault::Again }
    }
}
