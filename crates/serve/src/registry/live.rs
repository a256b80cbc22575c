//! What is loaded in this process, and which requests it gets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use breakers_core::ChatModel;

use super::draw::draw;
use super::shadow::Shadow;
use super::store::ModelRoute;
use crate::state::Hosted;

/// A loaded version.
pub(super) struct Loaded {
    pub(super) name: Arc<str>,
    pub(super) model: Arc<dyn ChatModel>,
    /// Shared by all that leads to the version. While somebody else holds it, a request may run.
    pub(super) health: Arc<AtomicU8>,
}

impl Loaded {
    pub(super) fn new(name: &str, model: Arc<dyn ChatModel>) -> Self {
        Self { name: name.into(), model, health: Arc::new(AtomicU8::new(0)) }
    }

    /// The version under a name that requests use.
    fn hosted(&self, alias: &str, shadow: Option<Arc<Shadow>>) -> Arc<Hosted> {
        let (model, health) = (Arc::clone(&self.model), Arc::clone(&self.health));
        Arc::new(Hosted::of_version(model, alias, Arc::clone(&self.name), health, shadow))
    }

    /// Whether no alias leads to it and no request runs on it.
    pub(super) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.health) == 1
    }
}

/// An alias with its versions loaded.
pub(super) struct LiveRoute {
    pub(super) route: ModelRoute,
    targets: Vec<Arc<Hosted>>,
}

impl LiveRoute {
    /// `None` if one of its versions is not loaded.
    pub(super) fn new(route: ModelRoute, loaded: &BTreeMap<String, Arc<Loaded>>) -> Option<Self> {
        let alias = &route.alias;
        let targets: Option<Vec<_>> = route
            .shares
            .iter()
            .map(|share| {
                let shadow = match &route.shadow {
                    Some(shadow) => {
                        let hosted = loaded.get(shadow)?.hosted(alias, None);
                        Some(Arc::new(Shadow::new(alias, &share.version, hosted)))
                    }
                    None => None,
                };
                Some(loaded.get(&share.version)?.hosted(alias, shadow))
            })
            .collect();
        Some(Self { targets: targets?, route })
    }

    /// The version for a request. `key` is what decides: equal keys get the same one.
    pub(super) fn choose(&self, key: &[u8]) -> Option<&Arc<Hosted>> {
        let shares = self.route.shares.iter().map(|share| (share.version.as_str(), share.weight));
        self.targets.get(draw(&self.route.alias, key, shares)?)
    }

    pub(super) fn targets(&self) -> &[Arc<Hosted>] {
        &self.targets
    }
}

/// Everything that requests can be led to. It is replaced as a whole.
#[derive(Default)]
pub(super) struct Live {
    pub(super) routes: BTreeMap<String, Arc<LiveRoute>>,
    pub(super) loaded: BTreeMap<String, Arc<Loaded>>,
    /// Loaded versions under their own names.
    pub(super) versions: BTreeMap<String, Arc<Hosted>>,
    /// Aliases whose present state could not be reached, and why. They may have an earlier one in `routes`.
    pub(super) behind: BTreeMap<String, Behind>,
}

/// Why an alias is not in its present state.
#[derive(Clone, Debug)]
pub(super) struct Behind {
    pub(super) route: i64,
    pub(super) reason: String,
}

impl Live {
    /// The same with other routes, and what no route needs anymore.
    pub(super) fn with_routes(
        &self,
        routes: BTreeMap<String, Arc<LiveRoute>>,
        mut loaded: BTreeMap<String, Arc<Loaded>>,
        behind: BTreeMap<String, Behind>,
    ) -> (Self, Vec<Arc<Loaded>>) {
        let is_needed = |name: &str| routes.values().any(|live| live.route.versions().contains(name));
        let unneeded: Vec<_> =
            loaded.extract_if(.., |name, _| !is_needed(name)).map(|(_, one)| one).collect();
        let versions = loaded
            .iter()
            .map(|(name, one)| {
                let known = self.versions.get(name).filter(|hosted| hosted.shares_health(&one.health));
                (name.clone(), known.map_or_else(|| one.hosted(name, None), Arc::clone))
            })
            .collect();
        (Self { routes, loaded, versions, behind }, unneeded)
    }
}
