// Walk goes through the Docker SDK for Go against the engine of DOCKER_HOST, and prints a line for each step that
// held. The first one that doesn't ends it with what went wrong.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/docker/docker/client"
)

const (
	image = "busybox:latest"
	bound = 50 * time.Second
)

type step struct {
	name string
	walk func(context.Context, *client.Client) error
}

var steps = []step{
	{"system", walkSystem},
	{"container", walkContainer},
	{"streams", walkStreams},
	{"logs", walkLogs},
	{"exec", walkExec},
	{"terminal", walkTerminal},
	{"copy", walkCopy},
	{"changes", walkChanges},
	{"stats", walkStats},
	{"volumes", walkVolumes},
	{"networks", walkNetworks},
	{"events", walkEvents},
	{"images", walkImages},
	{"errors", walkErrors},
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	api, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		fail("client", err)
	}
	defer api.Close()
	for _, each := range steps {
		if err := each.walk(ctx, api); err != nil {
			fail(each.name, err)
		}
		fmt.Println(each.name)
	}
}

func fail(name string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(1)
}

// want is an error unless both are the same.
func want(what string, got, wanted any) error {
	if got != wanted {
		return fmt.Errorf("%s is %#v, expected %#v", what, got, wanted)
	}
	return nil
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
