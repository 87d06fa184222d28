//! The configured models as governance knows them.

use crate::config::ModelSettings;
use crate::governance::DeclaredModel;
use crate::governance::records::Published;

/// A model of the settings as governance knows it.
pub(super) fn declared(model: &ModelSettings) -> DeclaredModel {
    DeclaredModel {
        name: model.name.clone(),
        display_name: model.display_name.clone(),
        source: model.source.to_string(),
        published: model.tiers.clone().map(Published::Tiers),
    }
}
