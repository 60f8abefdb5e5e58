//! i915 and amdgpu before 2019: pages that user space has named are given up when they are invalidated, and taken up again when it names them again, which is
//! not modelled. There is nothing to end, and it may refuse where it must not wait for its lock.

use core::ptr::NonNull;

use lazytlb_core::memory::{AtomicWord, Ordering::*};
use lazytlb_machine::{Machine, SimWord};
use lazytlb_mmu_notifier::{Contract, Invalidation, MmuNotifier, Node, Refusing, WouldBlock};

use super::{device, freed, released};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, Lock};

pub(crate) struct Userptr {
    node: Node<LabNotifier>,
    device: usize,
    /// A mutex.
    lock: Lock,
    dead: SimWord<usize>,
    /// How often somebody has asked for something else that takes the lock.
    asked: SimWord<usize>,
}

impl Userptr {
    pub(super) fn new(device: usize, place: NonNull<Userptr>) -> Userptr {
        // SAFETY: the driver has the node, and is freed with it.
        let node = unsafe { Node::new(Contract::Refusing(place)) };
        Userptr { node, device, lock: Lock::new(true), dead: AtomicWord::new(0), asked: AtomicWord::new(0) }
    }
}

impl MmuNotifier<LabNotifier> for Userptr {
    fn release(&self, _: &LabMm) {
        let _ = released(device(self.device), &self.lock, &self.dead);
    }
}

impl Refusing<LabNotifier> for Userptr {
    fn invalidate_range_start(&self, _: &LabMm, invalidation: Invalidation<'_>) -> Result<(), WouldBlock> {
        let device = device(self.device);
        device.is_called();
        if invalidation.is_blockable() {
            self.lock.lock();
        } else if !self.lock.try_lock() {
            return Err(WouldBlock);
        }
        device.zap(device.hit_by(invalidation));
        device.unlock(&self.lock);
        Ok(())
    }
}

impl Driver for Userptr {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    /// Whatever user space asks for takes the lock; nothing is mapped for it.
    fn fault(&self, device: &Device, _: usize) -> Fault {
        self.lock.lock();
        self.asked.store(self.asked.load(Relaxed) + 1, Relaxed);
        device.unlock(&self.lock);
        Fault::Nothing
    }
}
