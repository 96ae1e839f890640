package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	apiimage "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
)

func walkSystem(ctx context.Context, api *client.Client) error {
	ping, err := api.Ping(ctx)
	if err != nil {
		return err
	}
	version, err := api.ServerVersion(ctx)
	if err != nil {
		return err
	}
	info, err := api.Info(ctx)
	if err != nil {
		return err
	}
	usage, err := api.DiskUsage(ctx, types.DiskUsageOptions{})
	if err != nil {
		return err
	}
	return first(
		want("API version", ping.APIVersion, version.APIVersion), want("system", version.Os, "linux"),
		want("driver", info.Driver, "overlay2"), want("images", len(usage.Images), info.Images),
	)
}

func walkVolumes(ctx context.Context, api *client.Client) error {
	made, err := api.VolumeCreate(ctx, volume.CreateOptions{Name: "walk", Labels: map[string]string{"walk": "volume"}})
	if err != nil {
		return err
	}
	listed, err := api.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "walk"))})
	if err != nil {
		return err
	}
	if len(listed.Volumes) != 1 || listed.Volumes[0].Mountpoint != made.Mountpoint {
		return fmt.Errorf("the list is %+v", listed.Volumes)
	}
	host := &container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "walk", Target: "/data"}}}
	for _, command := range []string{"echo kept > /data/file", "grep -q kept /data/file || cat /data/file"} {
		config := &container.Config{Cmd: []string{"sh", "-c", command}}
		if err := started(ctx, api, config, host, func(id string) error {
			code, err := ended(ctx, api, id, container.WaitConditionNotRunning)
			return first(err, want("exit code of "+command, code, int64(0)))
		}); err != nil {
			return err
		}
	}
	found, err := api.VolumeInspect(ctx, "walk")
	return first(err, want("label", found.Labels["walk"], "volume"), api.VolumeRemove(ctx, "walk", false))
}

func walkNetworks(ctx context.Context, api *client.Client) error {
	options := network.CreateOptions{
		Driver: "bridge", Labels: map[string]string{"walk": "network"},
		IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.213.7.0/24", Gateway: "10.213.7.1"}}},
	}
	made, err := api.NetworkCreate(ctx, "walk", options)
	if err != nil {
		return err
	}
	config := &container.Config{Cmd: []string{"sleep", "600"}}
	used := started(ctx, api, config, nil, func(id string) error {
		endpoint := &network.EndpointSettings{
			IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: "10.213.7.9"}, Aliases: []string{"walker"},
		}
		if err := api.NetworkConnect(ctx, "walk", id, endpoint); err != nil {
			return err
		}
		found, err := api.NetworkInspect(ctx, made.ID, network.InspectOptions{Verbose: true})
		if err != nil {
			return err
		}
		inspected, err := api.ContainerInspect(ctx, id)
		if err != nil {
			return err
		}
		here := inspected.NetworkSettings.Networks["walk"]
		return first(
			want("member's address", found.Containers[id].IPv4Address, "10.213.7.9/24"),
			want("address", here.IPAddress, "10.213.7.9"), want("gateway", here.Gateway, "10.213.7.1"),
			want("alias", slices.Contains(here.Aliases, "walker"), true),
			api.NetworkDisconnect(ctx, "walk", id, false),
		)
	})
	listed, err := api.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "walk"))})
	return first(used, err, want("networks", len(listed), 1), api.NetworkRemove(ctx, made.ID))
}

func walkEvents(ctx context.Context, api *client.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	since := time.Now().Add(-time.Second)
	config := &container.Config{Cmd: []string{"true"}, Labels: map[string]string{"walk": "events"}}
	if err := started(ctx, api, config, nil, func(id string) error {
		_, err := ended(ctx, api, id, container.WaitConditionNotRunning)
		return err
	}); err != nil {
		return err
	}
	options := events.ListOptions{
		Since:   fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()),
		Filters: filters.NewArgs(filters.Arg("type", "container"), filters.Arg("label", "walk=events")),
	}
	messages, errs := api.Events(ctx, options)
	var seen []string
	for !slices.Contains(seen, "destroy") {
		select {
		case message := <-messages:
			seen = append(seen, string(message.Action))
		case err := <-errs:
			return err
		}
	}
	return want("events", strings.Join(seen, " "), "create start die destroy")
}

func walkImages(ctx context.Context, api *client.Client) error {
	if err := api.ImageTag(ctx, image, "walk:1"); err != nil {
		return err
	}
	found, err := api.ImageInspect(ctx, "walk:1")
	if err != nil {
		return err
	}
	listed, err := api.ImageList(ctx, apiimage.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", "walk"))})
	if err != nil {
		return err
	}
	history, err := api.ImageHistory(ctx, "walk:1")
	if err != nil {
		return err
	}
	archive, err := api.ImageSave(ctx, []string{"walk:1"})
	if err != nil {
		return err
	}
	defer archive.Close()
	loaded, err := api.ImageLoad(ctx, archive, client.ImageLoadWithQuiet(true))
	if err != nil {
		return err
	}
	defer loaded.Body.Close()
	said, err := io.ReadAll(loaded.Body)
	if err != nil {
		return err
	}
	if !strings.Contains(string(said), "Loaded image: walk:1") {
		return fmt.Errorf("the load says %s", said)
	}
	removed, err := api.ImageRemove(ctx, "walk:1", apiimage.RemoveOptions{})
	return first(
		err, want("listed", len(listed), 1), want("id", listed[0].ID, found.ID), want("layers", len(history), 1),
		want("untagged", removed[0].Untagged, "walk:1"),
	)
}
