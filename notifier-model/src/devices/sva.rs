//! An IOMMU that walks the CPU's own page tables: no tables to keep, and a TLB that is flushed when the CPUs' are.
//!
//! Source: the IOMMU drivers' use of `arch_invalidate_secondary_tlbs` since Linux 6.6. Behind `release` the device may still issue accesses: they fault, and nobody
//! hears of it.

use core::ptr::NonNull;

use lazytlb_machine::Machine;
use lazytlb_mmu_notifier::{Contract, MmuNotifier, Node, NotifierKernel, SharedTables};

use super::{device, freed};
use crate::device::{Device, Driver, Fault, Subscription};
use crate::kernel::{LabMm, LabNotifier, world};
use crate::names::Mutant;

pub(crate) struct Sva {
    node: Node<LabNotifier>,
    device: usize,
}

impl Sva {
    pub(super) fn new(device: usize, place: NonNull<Sva>) -> Sva {
        // SAFETY: the driver has the node, and is freed with it.
        let node = unsafe { Node::new(Contract::SharedTables(place)) };
        Sva { node, device }
    }
}

impl MmuNotifier<LabNotifier> for Sva {
    fn release(&self, _: &LabMm) {
        let device = device(self.device);
        device.is_called();
        // It does not walk from here on.
        device.is_released();
        if !world().has(Mutant::NoRelease) {
            device.flush_tlb(device.entries.clone());
        }
    }
}

impl SharedTables<LabNotifier> for Sva {
    fn arch_invalidate_secondary_tlbs(&self, _: &LabMm, start: usize, end: usize) {
        let device = device(self.device);
        device.is_called();
        if world().has(Mutant::Sleeps) {
            LabNotifier.might_sleep();
        }
        if !world().has(Mutant::NoTlbFlush) {
            device.flush_tlb(device.entries_of(start, end - 1));
        }
    }
}

impl Driver for Sva {
    fn subscription(&'static self) -> Subscription {
        Subscription::List(&self.node)
    }

    fn free(&'static self, machine: &Machine) {
        freed(machine, self);
    }

    /// Its hardware walks by itself.
    fn fault(&self, _: &Device, _: usize) -> Fault {
        Fault::Nothing
    }
}
