//! Routes that carry the types of their requests and responses; the OpenAPI document is generated
//! from them.

use std::sync::{Arc, OnceLock};

use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt};
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::error::ApiError;

/// Path of the OpenAPI document.
pub(crate) const DOCUMENT: &str = "/v1/openapi.json";

/// Content type of [`lines`].
const LINES: &str = "application/x-ndjson";

/// What the document says about an API as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    /// Title of the API.
    pub(crate) title: &'static str,
    /// Where the API is served, and what holds for all of it.
    pub(crate) description: &'static str,
}

/// One method on one path.
#[derive(Debug)]
pub(crate) struct Route<S> {
    operation: Operation,
    handler: MethodRouter<S>,
}

/// What the document says about a route.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    method: Method,
    path: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    request: Option<(Content, Required)>,
    answer: (StatusCode, Content),
    headers: &'static [Header],
}

/// A parameter in the path or the query: a whole number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter {
    /// Name of the parameter.
    pub(crate) name: &'static str,
    /// Where the parameter is.
    pub(crate) within: Within,
    /// What the parameter is for.
    pub(crate) description: &'static str,
}

/// Where a parameter is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Within {
    /// In the path.
    Path,
    /// In the query.
    Query {
        /// Its value if the query omits it.
        default: u64,
    },
}

/// A header of a response: a whole number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    /// Name of the header.
    pub(crate) name: &'static str,
    /// Meaning of the number.
    pub(crate) description: &'static str,
}

/// Whether a request must have a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Required {
    /// The body is required.
    Yes,
    /// The body is optional.
    No,
}

/// The content of a body.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// JSON of a type.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// Lines of JSON of a type, streamed.
    Lines(fn(&mut SchemaGenerator) -> Schema),
    /// Bytes that are not JSON (`application/octet-stream`).
    Bytes,
}

/// A GET route that answers what `call` makes of the state.
pub(crate) fn read<S, T, A>(path: &'static str, summary: &'static str, call: fn(S) -> A) -> Route<S>
where
    S: Clone + Send + Sync + 'static,
    T: Serialize + JsonSchema,
    A: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let handler = async move |State(state): State<S>| call(state).await.map(Json);
    Route::new::<T>(Method::GET, path, StatusCode::OK, summary, get(handler))
}

/// A route that answers with `status` and what `call` makes of the state and a part of the request.
pub(crate) fn with_part<S, P, T, A>(
    method: Method,
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    call: fn(S, Result<P, P::Rejection>) -> A,
) -> Route<S>
where
    S: Clone + Send + Sync + 'static,
    P: FromRequestParts<S> + Send + 'static,
    P::Rejection: Send + 'static,
    T: Serialize + JsonSchema,
    A: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let handler = async move |State(state): State<S>, part: Result<P, P::Rejection>| {
        call(state, part).await.map(|answer| (status, Json(answer)))
    };
    let handler = on(&method, handler);
    Route::new::<T>(method, path, status, summary, handler)
}

/// Like [`with_part`], for POST with a JSON body.
pub(crate) fn with_body<S, B, T, A>(
    path: &'static str,
    status: StatusCode,
    summary: &'static str,
    call: fn(S, Result<Json<B>, JsonRejection>) -> A,
) -> Route<S>
where
    S: Clone + Send + Sync + 'static,
    B: DeserializeOwned + JsonSchema + Send + 'static,
    T: Serialize + JsonSchema,
    A: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let handler = async move |State(state): State<S>, body: Result<Json<B>, JsonRejection>| {
        call(state, body).await.map(|answer| (status, Json(answer)))
    };
    Route::new::<T>(Method::POST, path, status, summary, post(handler)).taking::<B>(Required::Yes)
}

/// A response that streams `items`, each as a line of JSON, until they end.
pub(crate) fn lines<T: Serialize>(
    items: impl Stream<Item = T> + Send + 'static,
) -> impl IntoResponse {
    let line = |item| serde_json::to_string(&item).map(|json| format!("{json}\n"));
    ([(header::CONTENT_TYPE, LINES)], Body::from_stream(items.map(line)))
}

/// `handler` for one method.
pub(crate) fn on<H, X, S>(method: &Method, handler: H) -> MethodRouter<S>
where
    H: Handler<X, S>,
    X: 'static,
    S: Clone + Send + Sync + 'static,
{
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    axum::routing::on(filter, handler)
}

impl<S> Route<S> {
    /// A route without input, which answers a `T` with `status` unless it refuses.
    pub(crate) fn new<T: JsonSchema>(
        method: Method,
        path: &'static str,
        status: StatusCode,
        summary: &'static str,
        handler: MethodRouter<S>,
    ) -> Self {
        let answer = (status, Content::Json(SchemaGenerator::subschema_for::<T>));
        let (parameters, request, headers) = (&[], None, &[]);
        let operation = Operation { method, path, summary, parameters, request, answer, headers };
        Self { operation, handler }
    }

    /// Adds a request body of type `B`.
    pub(crate) fn taking<B: JsonSchema>(mut self, required: Required) -> Self {
        let content = Content::Json(SchemaGenerator::subschema_for::<B>);
        self.operation.request = Some((content, required));
        self
    }

    /// Adds parameters of the path or the query.
    pub(crate) fn with(mut self, parameters: &'static [Parameter]) -> Self {
        self.operation.parameters = parameters;
        self
    }

    /// Makes the route answer bytes, with numbers in these headers.
    pub(crate) fn answering_bytes(mut self, headers: &'static [Header]) -> Self {
        self.operation.answer.1 = Content::Bytes;
        self.operation.headers = headers;
        self
    }

    /// Makes the route answer lines of `T`, with numbers in these headers.
    pub(crate) fn answering_lines<T: JsonSchema>(mut self, headers: &'static [Header]) -> Self {
        self.operation.answer.1 = Content::Lines(SchemaGenerator::subschema_for::<T>);
        self.operation.headers = headers;
        self
    }

    /// What the document says about the route.
    pub(crate) fn operation(&self) -> &Operation {
        &self.operation
    }
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    /// Sets the limit for request bodies, in bytes.
    pub(crate) fn with_bodies_of(self, bytes_max: usize) -> Self {
        Self { handler: self.handler.layer(DefaultBodyLimit::max(bytes_max)), ..self }
    }
}

impl Operation {
    /// The HTTP method.
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// The path of the route, with its parameters in braces.
    pub(crate) fn path(&self) -> &'static str {
        self.path
    }
}

/// Returns the router that serves `routes` and gives `state` to their handlers.
pub(crate) fn router<S>(routes: Vec<Route<S>>, state: S) -> Router
where
    S: Clone + Send + Sync + 'static,
{
    let add =
        |router: Router<S>, route: Route<S>| router.route(route.operation.path, route.handler);
    routes.into_iter().fold(Router::new(), add).with_state(state)
}

/// Serves the document that describes these operations.
pub(crate) fn document_router(about: About, operations: Vec<Operation>) -> Router {
    let made: Arc<OnceLock<Bytes>> = Arc::default();
    let show = async move || {
        let make = || Bytes::from(document(about, &operations).to_string());
        ([(header::CONTENT_TYPE, "application/json")], made.get_or_init(make).clone())
    };
    Router::new().route(DOCUMENT, get(show))
}

/// Generates an OpenAPI document of these operations and of its own route.
pub(crate) fn document(about: About, operations: &[Operation]) -> Value {
    let settings = SchemaSettings::openapi3().with_transform(RecursiveTransform(plain));
    let mut generator = settings.into_generator();
    let refusal =
        content(Content::Json(SchemaGenerator::subschema_for::<ApiError>), &mut generator);
    let mut paths = Map::new();
    let itself = json!({
        "summary": "This document",
        "responses": { "200": { "description": "OK", "content": { "application/json": {} } } },
    });
    paths.insert(DOCUMENT.to_owned(), json!({ "get": itself }));
    for operation in operations {
        let described = operation.describe(&refusal, &mut generator);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_lowercase()] = described;
    }
    json!({
        "openapi": "3.0.3",
        "info": { "title": about.title, "version": "1", "description": about.description },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

/// Removes what is only for Rust or only for JSON Schema from the descriptions and the generated
/// schema.
fn plain(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace("[`", "`").replace("`]", "`");
    }
    // The defaults are for readers of older responses; requests cannot rely on them.
    schema.remove("default");
    // OpenAPI 3.0 has no tuples: allow any of the element types at any position.
    if let Some(Value::Array(kinds)) = schema.get_mut("items") {
        let mut kinds = std::mem::take(kinds);
        kinds.dedup();
        let items = if kinds.len() == 1 { kinds.remove(0) } else { json!({ "anyOf": kinds }) };
        schema.insert("items".to_owned(), items);
    }
}

impl Operation {
    fn describe(&self, refusal: &Value, generator: &mut SchemaGenerator) -> Value {
        let (status, answer) = &self.answer;
        let reason = status.canonical_reason().unwrap_or_default();
        let mut described = json!({
            "summary": self.summary,
            "responses": {
                status.as_str(): { "description": reason, "content": content(*answer, generator) },
                "default": { "description": "refused", "content": refusal },
            },
        });
        if !self.parameters.is_empty() {
            described["parameters"] = self.parameters.iter().map(Parameter::describe).collect();
        }
        if let Some((request, required)) = self.request {
            let required = required == Required::Yes;
            described["requestBody"] =
                json!({ "required": required, "content": content(request, generator) });
        }
        if !self.headers.is_empty() {
            let headers = self.headers.iter().map(|header| (header.name, header.describe()));
            described["responses"][status.as_str()]["headers"] = headers.collect();
        }
        described
    }
}

impl Parameter {
    fn describe(&self) -> Value {
        let mut schema = json!({ "type": "integer", "minimum": 0 });
        let (within, required) = match self.within {
            Within::Path => ("path", true),
            Within::Query { default } => {
                schema["default"] = default.into();
                ("query", false)
            }
        };
        json!({
            "name": self.name,
            "in": within,
            "required": required,
            "description": self.description,
            "schema": schema,
        })
    }
}

impl Header {
    fn describe(&self) -> Value {
        let schema = json!({ "type": "integer", "minimum": 0 });
        json!({ "description": self.description, "schema": schema })
    }
}

fn content(content: Content, generator: &mut SchemaGenerator) -> Value {
    match content {
        Content::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        Content::Lines(schema) => json!({ LINES: { "schema": schema(generator) } }),
        Content::Bytes => {
            let schema = json!({ "type": "string", "format": "binary" });
            json!({ "application/octet-stream": { "schema": schema } })
        }
    }
}
