// Reaper does what testcontainers asks of its cleaner, whose image is on a registry: it takes filters, a line each, by
// TCP, and removes what they select once its last client has been gone for a while.
//
// A line is a query string: label=org.testcontainers.session-id%3DID&label=... Each is answered by ACK.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/moby/moby/client"
)

const (
	address    = ":8080"
	callBound  = 30 * time.Second
	firstBound = time.Minute
	tries      = 10
	ownLabel   = "org.testcontainers.ryuk"
)

func main() {
	log.SetFlags(0)
	api, err := client.New(client.FromEnv)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := api.Ping(context.Background(), client.PingOptions{}); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	log.Print("Started!")
	for _, selected := range collect(listener, patience()) {
		for range tries {
			err := remove(api, selected)
			if err == nil {
				break
			}
			log.Print(err) // such as a removal by another that is under way
			time.Sleep(time.Second)
		}
	}
}

// patience is how long a client may be gone before it counts as gone for good.
func patience() time.Duration {
	for _, name := range []string{"RYUK_RECONNECTION_TIMEOUT", "TESTCONTAINERS_RYUK_RECONNECTION_TIMEOUT"} {
		if given, err := time.ParseDuration(os.Getenv(name)); err == nil {
			return given
		}
	}
	return 10 * time.Second
}

// collect returns what clients have named, once none is connected any more.
func collect(listener net.Listener, patience time.Duration) map[string]client.Filters {
	connections, gone, lines := make(chan net.Conn), make(chan struct{}), make(chan string)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			connections <- connection
		}
	}()
	selected := make(map[string]client.Filters)
	timer, open := time.NewTimer(firstBound), 0
	for {
		select {
		case connection := <-connections:
			open++
			timer.Stop()
			go serve(connection, lines, gone)
		case line := <-lines:
			if filters, err := parse(line); err != nil {
				log.Print(err)
			} else {
				selected[line] = filters
			}
		case <-gone:
			if open--; open == 0 {
				timer.Reset(patience)
			}
		case <-timer.C:
			return selected
		}
	}
}

func serve(connection net.Conn, lines chan<- string, gone chan<- struct{}) {
	defer func() { connection.Close(); gone <- struct{}{} }()
	for scanner := bufio.NewScanner(connection); scanner.Scan(); {
		lines <- scanner.Text()
		if _, err := fmt.Fprintln(connection, "ACK"); err != nil {
			return
		}
	}
}

func parse(line string) (client.Filters, error) {
	words, err := url.ParseQuery(line)
	if err != nil || len(words) == 0 {
		return nil, fmt.Errorf("%q is no filter", line)
	}
	filters := make(client.Filters)
	for name, values := range words {
		filters.Add(name, values...)
	}
	return filters, nil
}

// remove takes away everything that the filters select: containers first, which hold the rest.
func remove(api *client.Client, selected client.Filters) error {
	ctx, cancel := context.WithTimeout(context.Background(), callBound)
	defer cancel()
	var failed []error
	note := func(err error) { failed = append(failed, err) }

	containers, err := api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: selected})
	note(err)
	for _, each := range containers.Items {
		if each.Labels[ownLabel] == "true" {
			continue // this one: its engine removes it at its end
		}
		_, err := api.ContainerRemove(ctx, each.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		note(err)
	}
	networks, err := api.NetworkList(ctx, client.NetworkListOptions{Filters: selected})
	note(err)
	for _, each := range networks.Items {
		_, err := api.NetworkRemove(ctx, each.ID, client.NetworkRemoveOptions{})
		note(err)
	}
	volumes, err := api.VolumeList(ctx, client.VolumeListOptions{Filters: selected})
	note(err)
	for _, each := range volumes.Items {
		_, err := api.VolumeRemove(ctx, each.Name, client.VolumeRemoveOptions{Force: true})
		note(err)
	}
	images, err := api.ImageList(ctx, client.ImageListOptions{Filters: selected})
	note(err)
	for _, each := range images.Items {
		_, err := api.ImageRemove(ctx, each.ID, client.ImageRemoveOptions{Force: true, PruneChildren: true})
		note(err)
	}
	return errors.Join(failed...)
}
