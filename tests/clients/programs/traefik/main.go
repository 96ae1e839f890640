// Routes prints what Traefik's Docker provider makes of the containers of the engine of DOCKER_HOST: a line of JSON at
// the start, and one whenever the provider has seen a change.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/provider/docker"
	"github.com/traefik/traefik/v3/pkg/safe"
)

func main() {
	var provider docker.Provider
	provider.SetDefaults()
	provider.Endpoint = os.Getenv("DOCKER_HOST")
	provider.ExposedByDefault = false
	if err := provider.Init(); err != nil {
		log.Fatal(err)
	}
	messages := make(chan dynamic.Message)
	if err := provider.Provide(messages, safe.NewPool(context.Background())); err != nil {
		log.Fatal(err)
	}
	lines := json.NewEncoder(os.Stdout)
	for message := range messages {
		if err := lines.Encode(message.Configuration.HTTP); err != nil {
			log.Fatal(err)
		}
	}
}
