// The reference page: Swagger UI over this server's own document, so that every request can be tried.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // Swagger's own would be asked over the Internet
});
