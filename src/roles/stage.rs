//! The stages of a cloud's making: where a run may stop, be kept, and be taken up again.

use crate::engine::plan;

/// In their order. Each is all steps of it and of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The nodes answer to SSH; no step of the plan.
    Booted,
    /// Names, clock, logins, database, queue, caches.
    Foundation,
    Keystone,
    GlancePlacement,
    Nova,
    Neutron,
    /// Everything, and a second run found nothing to change; no step of its own.
    CloudReady,
}

impl Stage {
    pub const ORDER: [Stage; 7] = [
        Stage::Booted,
        Stage::Foundation,
        Stage::Keystone,
        Stage::GlancePlacement,
        Stage::Nova,
        Stage::Neutron,
        Stage::CloudReady,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Stage::Booted => "booted",
            Stage::Foundation => "foundation",
            Stage::Keystone => "keystone",
            Stage::GlancePlacement => "glance-placement",
            Stage::Nova => "nova",
            Stage::Neutron => "neutron",
            Stage::CloudReady => "cloud-ready",
        }
    }
}

impl From<Stage> for plan::Stage {
    fn from(stage: Stage) -> plan::Stage {
        plan::Stage { rank: stage as usize, name: stage.name() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_ranks_and_every_name_is_its_own() {
        let stages: Vec<plan::Stage> = Stage::ORDER.map(Into::into).into();
        assert!(stages.is_sorted_by(|a, b| a.rank < b.rank));
        let names: std::collections::BTreeSet<_> = stages.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), stages.len());
    }
}
