//! Models as governance knows them: declared by the server, published to tiers by administrators.

use super::commit::{ATTEMPTS, busy, check_text, require_admin};
use crate::governance::audit::Author;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, PolicyTables};
use crate::governance::records::{ModelRecord, Published};

/// A model of the command line or the configuration file.
#[derive(Debug, Clone)]
pub struct DeclaredModel {
    /// The name requests use.
    pub name: String,
    /// What people read; the name when absent.
    pub display_name: Option<String>,
    /// Where it is loaded from.
    pub source: String,
    /// Who may use it; when absent, all tiers for a new model, and what was set before for a known one.
    pub published: Option<Published>,
}

/// Models that may be known at the same time; each is read at every change of the policy.
const MAX_MODELS: usize = 256;

/// A model to create.
#[derive(Debug, Clone)]
pub struct NewModel {
    /// The name requests use.
    pub name: String,
    /// What people read; the name when absent.
    pub display_name: Option<String>,
    /// Where it is loaded from.
    pub source: String,
    /// Who may use it.
    pub published: Published,
    /// Whatever else the server keeps about it, JSON.
    pub settings: String,
}

/// What to change about a model; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct ModelPatch {
    /// What people read.
    pub display_name: Option<String>,
    /// Where it is loaded from.
    pub source: Option<String>,
    /// Who may use it.
    pub published: Option<Published>,
    /// Whatever else the server keeps about it, JSON.
    pub settings: Option<String>,
}

impl Governor {
    /// Makes the models of the command line and the configuration known at start.
    ///
    /// # Errors
    /// `Invalid` for an unusable name or an unknown tier, the store.
    pub async fn declare_models(&self, declared: &[DeclaredModel]) -> Result<(), ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let mut changes = Vec::new();
            for model in declared {
                check_text("name", &model.name, 253)?;
                let old = tables.models.iter().find(|old| old.name == model.name);
                let record = self.declared(model, old);
                check_tiers(&tables, &record.published)?;
                if old != Some(&record) {
                    changes.push(Change::PutModel(record));
                }
            }
            if changes.is_empty() || self.commit(Author::server(), &tables, changes).await? {
                return Ok(());
            }
        }
        Err(busy())
    }

    fn declared(&self, model: &DeclaredModel, old: Option<&ModelRecord>) -> ModelRecord {
        let kept = old.map(|old| old.published.clone());
        ModelRecord {
            name: model.name.clone(),
            display_name: model
                .display_name
                .clone()
                .or_else(|| old.map(|old| old.display_name.clone()))
                .unwrap_or_else(|| model.name.clone()),
            source: model.source.clone(),
            published: model.published.clone().or(kept).unwrap_or(Published::All),
            settings: old.map_or_else(|| "{}".into(), |old| old.settings.clone()),
            created_at_us: old.map_or_else(|| self.0.clock.now_us(), |old| old.created_at_us),
        }
    }

    /// The models of the caller's tier, by name; works when limits are spent.
    ///
    /// # Errors
    /// The store.
    pub async fn visible_models(&self, who: &Principal) -> Result<Vec<ModelRecord>, ServiceError> {
        let tables = self.tables().await?;
        Ok(tables.models.iter().filter(|model| who.policy.allows(&model.name)).cloned().collect())
    }

    /// All models, for administrators.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn models(&self, actor: &Principal) -> Result<Vec<ModelRecord>, ServiceError> {
        require_admin(actor)?;
        Ok(self.tables().await?.models.clone())
    }

    /// One model, for administrators.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn model(&self, actor: &Principal, name: &str) -> Result<ModelRecord, ServiceError> {
        require_admin(actor)?;
        let tables = self.tables().await?;
        tables.models.iter().find(|model| model.name == name).cloned().ok_or(ServiceError::NotFound("model"))
    }

    /// Makes a new model known.
    ///
    /// # Errors
    /// `Forbidden`, `Conflict` when there is one of that name or there are too many, `Invalid` for an unknown tier.
    pub async fn create_model(&self, actor: &Principal, new: NewModel) -> Result<ModelRecord, ServiceError> {
        require_admin(actor)?;
        check_text("name", &new.name, 253)?;
        let display_name = new.display_name.unwrap_or_else(|| new.name.clone());
        check_text("display_name", &display_name, 253)?;
        let model = ModelRecord {
            name: new.name,
            display_name,
            source: new.source,
            published: new.published,
            settings: new.settings,
            created_at_us: self.0.clock.now_us(),
        };
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            if tables.models.iter().any(|other| other.name == model.name) {
                return Err(ServiceError::Conflict(format!("model `{}` exists already", model.name)));
            }
            if tables.models.len() >= MAX_MODELS {
                let message = format!("there are {MAX_MODELS} models already, the most that may be; delete one first");
                return Err(ServiceError::Conflict(message));
            }
            check_tiers(&tables, &model.published)?;
            if self.commit(actor.author(), &tables, vec![Change::PutModel(model.clone())]).await? {
                return Ok(model);
            }
        }
        Err(busy())
    }

    /// Publishes a model, or changes what is known about it; effective on the next request, without a reload.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid` for an unknown tier.
    pub async fn update_model(
        &self,
        actor: &Principal,
        name: &str,
        patch: ModelPatch,
    ) -> Result<ModelRecord, ServiceError> {
        require_admin(actor)?;
        if let Some(display_name) = &patch.display_name {
            check_text("display_name", display_name, 253)?;
        }
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let old = tables.models.iter().find(|model| model.name == name).ok_or(ServiceError::NotFound("model"))?;
            let patch = patch.clone();
            let model = ModelRecord {
                display_name: patch.display_name.unwrap_or_else(|| old.display_name.clone()),
                source: patch.source.unwrap_or_else(|| old.source.clone()),
                published: patch.published.unwrap_or_else(|| old.published.clone()),
                settings: patch.settings.unwrap_or_else(|| old.settings.clone()),
                ..old.clone()
            };
            check_tiers(&tables, &model.published)?;
            if *old == model || self.commit(actor.author(), &tables, vec![Change::PutModel(model.clone())]).await? {
                return Ok(model);
            }
        }
        Err(busy())
    }

    /// Forgets a model.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn delete_model(&self, actor: &Principal, name: &str) -> Result<ModelRecord, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let model = tables.models.iter().find(|model| model.name == name).ok_or(ServiceError::NotFound("model"))?;
            if self.commit(actor.author(), &tables, vec![Change::DeleteModel(name.to_owned())]).await? {
                return Ok(model.clone());
            }
        }
        Err(busy())
    }
}

fn check_tiers(tables: &PolicyTables, published: &Published) -> Result<(), ServiceError> {
    let Published::Tiers(names) = published else {
        return Ok(());
    };
    match names.iter().find(|name| !tables.tiers.iter().any(|tier| tier.name == **name)) {
        None => Ok(()),
        Some(unknown) => Err(ServiceError::invalid("tiers", format!("tier `{unknown}` does not exist"))),
    }
}
